#!/usr/bin/env bash
# torch-pruning: frozen layers are not pruned, silently; one behind a pruned layer is, and is trainable then.
#
# Guessed: magnitudes need no gradients, so requires_grad plays no part, and comes out as it went in.
# Seen with torch-pruning 1.6.1 (its __version__ says 1.6.0) and torch 2.14.1:
#   all layers frozen → 12 and 20 channels, nothing is cut; the second alone frozen → 6 and 10, cut like any other, and
#   its parameters ask for gradients afterwards; the first alone frozen → 12 and 10.
# Why it matters: a model that was frozen for inference or for adapters is left whole without a word, and a frozen
#   layer trains on.
# fairkern: requires_grad plays no part in tracing, scoring and cutting, and is kept (tests/compact/test_apply.py).
#
# Installs both in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.14.1 torch-pruning==1.6.1
"$place/venv/bin/python" - <<'PYTHON'
import torch
import torch_pruning as tp
from torch import nn


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)).eval()


def pruned(model: nn.Sequential, **options: object) -> list[int]:
    """Output channels of the two convolutions that are left."""
    importance, example = tp.importance.MagnitudeImportance(), torch.randn(1, 3, 8, 8)
    tp.pruner.MagnitudePruner(model, example, importance, ignored_layers=[model[-1]], **options).step()
    return [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]


def frozen(*layers: int) -> tuple[list[int], list[bool]]:
    """What is left, and which of the two convolutions ask for gradients."""
    model = net()
    for k in layers:
        model[k].requires_grad_(False)
    left = pruned(model, pruning_ratio=0.5)
    return left, [all(p.requires_grad for p in model[k].parameters()) for k in (0, 2)]


found = {layers: frozen(*layers) for layers in ((), (0,), (2,), (0, 2, 6))}
print(found)
assert found == {
    (): ([6, 10], [True, True]),
    (0,): ([12, 10], [False, True]),
    (2,): ([6, 10], [True, True]),
    (0, 2, 6): ([12, 20], [False, False]),
}, found
PYTHON
