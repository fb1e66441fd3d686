"""Operators of torchvision: convolutions that read where offsets say, and pooling over boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from tests.axes.harness import Net

ops = pytest.importorskip("torchvision.ops")

X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0.0, 1.0, 1.0, 6.0, 7.0], [1.0, 0.0, 2.0, 8.0, 9.0], [1.0, 3.0, 1.0, 9.0, 5.0]])


def deformed(m: Net, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    return m.b(m.d(x, m.offset(x), m.mask(x).sigmoid()).relu())


def deforming(groups: int = 1, parts: int = 1) -> Callable[[], Net]:
    return lambda: Net(
        deformed,
        a=nn.Conv2d(3, 8, 3, padding=1),
        offset=nn.Conv2d(8, 18 * parts, 3, padding=1),
        mask=nn.Conv2d(8, 9 * parts, 3, padding=1),
        d=ops.DeformConv2d(8, 6, 3, padding=1, groups=groups),
        b=nn.Conv2d(6, 4, 1),
    )


def by_function(m: Net, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    return m.b(ops.deform_conv2d(x, m.offset(x), m.d.weight, padding=1).relu())


def aligned(m: Net, x: Tensor) -> Tensor:
    return m.b(ops.roi_align(m.a(x).relu(), m.boxes, 4, 0.7).relu())


def pooled(m: Net, x: Tensor) -> Tensor:
    return m.b(ops.roi_pool(m.a(x).relu(), m.boxes, 3))


def by_place(m: Net, x: Tensor) -> Tensor:
    return m.b(ops.ps_roi_align(m.a(x).relu(), m.boxes, 2, 0.7))


def around(run: Callable[[Net, Tensor], Tensor], channels: int, read: int) -> Callable[[], Net]:
    return lambda: Net(run, a=nn.Conv2d(3, channels, 3), b=nn.Conv2d(read, 4, 1), boxes=BOXES)


CASES = {
    "deformable": (deforming(), [6, 8]),
    "deformable, in groups": (deforming(groups=2), [3, 4]),
    "deformable, offsets for parts": (deforming(parts=2), [4, 6]),
    "roi_align": (around(aligned, 8, 8), [8]),
    "roi_pool": (around(pooled, 8, 8), [8]),
    "ps_roi_align": (around(by_place, 24, 6), [6]),
}


@pytest.mark.parametrize("name", CASES)
def test_channels_pass(name: str) -> None:
    make, expected = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    units = fk.trace(model, X)
    assert sorted(units.groups[g].units for g in units.prunable) == expected
    assert not any("without a rule" in note for note in units.notes)
    plan = build(units, random_removal(units, 0.5, seed=1))
    small = fk.apply(model, plan)
    with fk.Plan(**vars(plan)).masked(model):
        assert difference(model, small, X) < 1e-5
    assert difference(model, small, X) > 1e-3


def test_boxes_that_are_compared_stay() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        kept = ops.nms(m.boxes[:, 1:], m.scores(x).mean((0, 2, 3))[:3], 0.5)
        return m.b(m.a(x)).mean((2, 3))[:, : len(kept)]

    parts = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 1), "scores": nn.Conv2d(3, 6, 1), "boxes": BOXES}
    units = fk.trace(Net(run, **parts).eval(), X)
    assert [units.groups[g].name for g in units.prunable] == ["a"]
    assert not any("without a rule" in note for note in units.notes)
