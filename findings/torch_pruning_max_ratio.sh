#!/usr/bin/env bash
# torch-pruning: max_pruning_ratio does not bound what a layer loses.
#
# Guessed: with max_pruning_ratio=0.25 no layer loses more than a quarter of its channels, whatever the ratio.
# Seen with torch-pruning 1.6.1 (its __version__ says 1.6.0) and torch 2.14.1:
#   pruning_ratio=0.5 leaves 6 of 12 and 10 of 20 channels with the bound and without; with global_pruning=True 5 and 11,
#   so one layer loses 58 %.
# Why it matters: the bound is there to keep global pruning from emptying a layer.
# fairkern: max_remove bounds every group under every allocation (tests/allocate/test_budget.py).
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


local = [pruned(net(), pruning_ratio=0.5, **bound) for bound in ({}, {"max_pruning_ratio": 0.25})]
everywhere = pruned(net(), pruning_ratio=0.5, max_pruning_ratio=0.25, global_pruning=True)
print(local, everywhere)
assert local == [[6, 10], [6, 10]], local
assert everywhere == [5, 11], everywhere
PYTHON
