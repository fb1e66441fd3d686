"""What tools that only set weights to zero have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bench.comparison.cases import CASES, Case
from bench.comparison.cells import Cell, exported, no, parameters

Cut = Callable[[Case], nn.Module]


def nothing_smaller(case: Case, cut: Cut) -> Cell:
    """no, after having looked: as many parameters as before, some of them zero."""
    model = cut(case)
    left = parameters(model)
    assert left == case.whole, left
    zero = sum(int((p == 0).sum()) for p in model.parameters())
    return no(f"weights are set to zero ({zero:,} of {case.whole:,} are), tensors keep their shapes")


def structure(name: str, cut: Cut) -> Cell:
    return nothing_smaller(CASES[name](), cut)


def proven(cut: Cut) -> Cell:
    for name in CASES:
        nothing_smaller(CASES[name](), cut)
    return no("there is nothing to follow: no shape changes")


def onnx(cut: Cut) -> Cell:
    case = CASES["chain"]()
    with torch.no_grad():
        size, _ = exported(cut(case), CASES["chain"]().model, case.example)
    assert size > 0.9
    return no(f"{size:.0%} of the file, zeros in it")
