#!/usr/bin/env bash
# torch-pruning: behind a channel shuffle it removes other channels than in front of it, says nothing, and the model runs.
#
# Guessed: channels in front of a shuffle are followed to where it puts them, or the layer is left alone.
# Seen with torch-pruning 1.6.1 (its __version__ says 1.6.0) and torch 2.14.1: 8 channels in two halves that take turns, half
#   of them to go. Of the layer in front of the shuffle and of the one behind it the same positions are taken, as if there were
#   no shuffle, which puts the channels that stay elsewhere. Criteria are summed over such pairs, too. Without the shuffle, what
#   is left gives what the network gives with those channels at zero; with it, something else.
# Why it matters: shapes fit, so nothing fails. In a ShuffleNet accuracy is lost to wrong channels and blamed on pruning.
# fairkern: positions are followed one by one through view, transpose and reshape; what is left is held against the masked
#   model before it may be cut (bench/comparison/cases.py has this network; tests/axes/rules).
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
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, shuffles: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shuffles = shuffles
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.shuffles:
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.second(x)


def left(small: Tensor, whole: Tensor) -> list[int]:
    """Which rows of the weight are left."""
    return [k for k, row in enumerate(whole) if any(torch.equal(row, other) for other in small)]


@torch.no_grad()
def moved(shuffles: bool) -> float:
    """How far the output is from that of the whole network with the channels that went at zero."""
    net, masked, x = Net(shuffles).eval(), Net(shuffles).eval(), torch.randn(2, 3, 4, 4)
    with torch.enable_grad():
        tp.pruner.BasePruner(
            net, x, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=[net.second]
        ).step()
    stay = left(net.first.weight, masked.first.weight)
    read = left(net.second.weight.transpose(0, 1), masked.second.weight.transpose(0, 1))
    lie = sorted(2 * (k % 4) + k // 4 for k in stay) if shuffles else stay
    print(f"channels {stay} stay and lie at {lie}; the next layer reads {read}")
    assert len(stay) == 4
    assert read == stay
    assert (read == lie) is not shuffles
    for k in set(range(8)) - set(stay):
        masked.first.weight[k], masked.first.bias[k] = 0, 0
    expected = masked(x)
    return float((net(x) - expected).abs().max() / expected.abs().max())


plain, shuffled = moved(False), moved(True)
print(f"the output moves by {plain:.0e} without a shuffle, by {shuffled:.0%} with one")
assert plain < 1e-6, plain
assert shuffled > 0.1, shuffled
PYTHON
