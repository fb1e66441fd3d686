"""Sums of what is read in two models against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairkern.capture import joint
from fairkern.capture.joint import JointSums
from fairkern.capture.points import Point
from fairkern.types import CallSite, Side

KEPT = torch.tensor([0, 2, 3])


@pytest.mark.parametrize("at_once", [1, 40, 1 << 17], ids=["a sample", "some", "all"])
@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "those that stay"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 6, 3, 2), 1), ((5, 4, 6), -1), ((7, 6), 1), ((6,), 0)])
def test_two_batches(
    shape: tuple[int, ...], dim: int, kept: torch.Tensor | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "_NUMBERS", at_once)
    sums = JointSums(Point("here", (CallSite("here"),), Side.INPUT, dim, 6, ()), 1, kept)
    batches = [[torch.randn(shape, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
    for before, now in batches:
        sums.add(before, now)
    a, b = (torch.cat([both[i].movedim(dim, 0).reshape(6, -1) for both in batches], 1) for i in range(2))
    left = b if kept is None else b[kept]
    found = sums.moments()
    assert found.count == a.shape[1]
    for value, expected in (
        (found.cross, a @ left.T),
        (found.gram, left @ left.T),
        (found.total, a.sum(1)),
        (found.changed, left.sum(1)),
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_offsets_of_a_channel_give_a_vector_each() -> None:
    sums = JointSums(Point("here", (CallSite("here"),), Side.INPUT, 1, 6, ()), 2)
    a, b = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    sums.add(a, b)
    (x, y), found = (t.view(5, 3, 2).transpose(0, 1).reshape(3, 10) for t in (a, b)), sums.moments()
    assert found.count == 10
    np.testing.assert_allclose(found.cross, x @ y.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.gram, y @ y.T, rtol=1e-12, atol=1e-12)


def test_squares_that_float32_does_not_hold() -> None:
    sums = JointSums(Point("here", (CallSite("here"),), Side.INPUT, 1, 4, ()), 1)
    a, b = torch.randn(5, 4) * 1e25, torch.randn(5, 4) * 1e25
    sums.add(a, b)
    np.testing.assert_allclose(sums.moments().gram, b.double().T @ b.double(), rtol=1e-12)
