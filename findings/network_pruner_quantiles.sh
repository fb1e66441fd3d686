#!/usr/bin/env bash
# network-pruner (the package of FAIR-Pruner's paper): two classes with one distribution are not at distance zero where
# their numbers of samples differ, and classes from the hundredth on are never compared.
#
# Guessed: its Utilization Score is the Wasserstein distance, so that a distribution is at distance 0 from itself, however
#   many samples of it there are; and all classes of the data take part.
# Seen with network-pruner 2.16 and torch 2.14.1:
#   0, 1 against 0, 0, 1, 1 → 0.1667 (quantiles are interpolated, at as many points as the larger class has samples);
#   0, 0, 1, 1 against itself → 0. Of 110 classes, of which only the last ten differ → 0 for every unit.
# Why it matters: in data with unequal classes the score measures how unequal they are; on data sets of a thousand classes
#   it is that of the first hundred.
# fairkern: the exact integral of |F⁻¹ − G⁻¹|, classes without bound; docs/quality.md compares the two.
#
# Installs both in a temporary folder, runs them, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy torch==2.14.1 network-pruner==2.16
"$place/venv/bin/python" - "$place" <<'PYTHON'
import contextlib
import io
import sys

import torch
from Network_Pruner import FAIR_Pruner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def distances(net: nn.Sequential, x: Tensor, labels: Tensor) -> list[float]:
    """Of the units of the first layer."""
    data = TensorDataset(x, labels)
    data.classes = sorted(set(labels.tolist()))
    with contextlib.redirect_stdout(io.StringIO()):
        found = FAIR_Pruner.get_metrics(
            net, DataLoader(data, batch_size=len(x)), loss_function=nn.CrossEntropyLoss(), device=torch.device("cpu"),
            the_samplesize_for_compute_distance=len(x), results_save_path=f"{sys.argv[1]}/metrics",
        )
    return [round(float(value), 4) for value in found["D_0"]]


def line() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    nn.init.ones_(net[0].weight)
    return net


few, many = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
unequal = distances(line(), torch.cat([few, many])[:, None], torch.tensor([0] * 2 + [1] * 4))
equal = distances(line(), torch.cat([many, many])[:, None], torch.tensor([0] * 4 + [1] * 4))

torch.manual_seed(0)
labels = torch.arange(110).repeat_interleave(2)
x = torch.zeros(len(labels), 4)
x[labels >= 100] = torch.randn(20, 4)
late = distances(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 110)), x, labels)
print(unequal, equal, late)
assert unequal == [0.1667, 0.1667], unequal
assert equal == [0.0, 0.0], equal
assert late == [0.0] * 6, late
PYTHON
