#!/usr/bin/env bash
# torch-pruning: with round_to, asking for more pruning leaves more, up to the whole network, and says nothing.
#
# Guessed: a layer of 12 channels with round_to=8 is cut to 8 whenever the ratio asks for 8 or fewer.
# Seen with torch-pruning 1.6.1 (its __version__ says 1.6.0) and torch 2.14.1:
#   ratio 0.2 → 8 and 16 of 12 and 20 channels; 0.3 → 8, 8; 0.5 → 12, 8; 0.9 → 12, 20: nothing is cut at all.
# Why it matters: a sweep over ratios is not monotone; a layer narrower than twice the multiple is left
#   whole by a high ratio, where a low one cuts it.
# fairkern: what stays of a group that is cut is a multiple, the largest cut that keeps one is always open, and a budget
#   that cannot be met is an error (tests/allocate/test_budget.py).
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


found = {ratio: pruned(net(), pruning_ratio=ratio, round_to=8) for ratio in (0.2, 0.3, 0.5, 0.9)}
print(found)
assert found == {0.2: [8, 16], 0.3: [8, 8], 0.5: [12, 8], 0.9: [12, 20]}, found
assert pruned(net(), pruning_ratio=0.9) == [1, 1]  # without round_to the ratio is followed
PYTHON
