"""Backward elimination against fits solved from scratch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairkern.errors import InputError, NonFiniteError
from fairkern.ops import View, eliminate
from fairkern.ops.eliminate import reference


def view(n: int, rows: Tensor, seed: int = 0, samples: int = 60, outputs: int = 7) -> View:
    """Correlated positions: a few causes seen through noise."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, max(2, n // 3), dtype=torch.float64, generator=generator)
    a = causes @ torch.randn(causes.shape[1], n, dtype=torch.float64, generator=generator)
    a = torch.relu(a) + 0.1 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    w = torch.randn(n, outputs, dtype=torch.float64, generator=generator)
    return View(torch.cov(a.T) + 1e-6 * torch.eye(n, dtype=torch.float64), w @ w.T, rows)


CASES = {
    "one position a unit": [view(12, torch.arange(12)[:, None])],
    "positions that always stay": [view(14, torch.arange(1, 13)[:, None])],
    "blocks": [view(12, torch.arange(12).reshape(4, 3))],
    "two views": [view(10, torch.arange(10)[:, None], 1), view(13, torch.arange(3, 13)[:, None], 2)],
    "views of unlike blocks": [view(10, torch.arange(10).reshape(5, 2), 3), view(5, torch.randperm(5)[:, None], 4)],
}


@pytest.mark.parametrize("name", CASES)
def test_a_panel_of_all_units_is_exact(name: str) -> None:
    views = CASES[name]
    order, added = reference.eliminate(
        [v.covariance for v in views], [v.output for v in views], [v.rows for v in views]
    )
    found = eliminate(views, panel=len(views[0].rows))
    assert found.order.tolist() == order.tolist()
    torch.testing.assert_close(found.error, added.cummax(0).values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("panel", [1, 4, 9, None])
def test_small_panels_lose_little(panel: int | None) -> None:
    """The cost of the first k units, by definition, is near that of the exact order."""
    given = view(48, torch.arange(48)[:, None], 5, samples=200)
    exact, near = eliminate([given], panel=48).order, eliminate([given], panel=panel).order
    assert sorted(near.tolist()) == list(range(48))
    for k in (8, 16, 24, 36):
        best = reference.cost(given.covariance, given.output, exact[:k])
        assert reference.cost(given.covariance, given.output, near[:k]) <= 1.05 * best


def test_a_copy_goes_for_nothing_and_the_other_then_stays() -> None:
    base = view(6, torch.arange(6)[:, None], 6)
    twice = torch.cat([torch.eye(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[:1]])
    covariance = twice @ base.covariance @ twice.T + 1e-9 * torch.eye(7, dtype=torch.float64)
    found = eliminate([View(covariance, twice @ base.output @ twice.T, torch.arange(7)[:, None])])
    assert int(found.order[0]) in (0, 6)
    assert float(found.error[0]) < 1e-6 * float(found.error[1])


def test_what_cannot_be_used_is_said() -> None:
    good = view(6, torch.arange(6)[:, None])
    with pytest.raises(InputError, match="no views"):
        eliminate([])
    with pytest.raises(InputError, match="expected float64"):
        eliminate([good._replace(output=good.output.float())])
    with pytest.raises(InputError, match="expected positions from 0 to 5"):
        eliminate([good._replace(rows=torch.arange(7)[:, None])])
    with pytest.raises(InputError, match=r"expected \[6, positions of a unit\]"):
        eliminate([good, view(5, torch.arange(5)[:, None])])
    with pytest.raises(NonFiniteError, match="add a ridge"):
        eliminate([good._replace(covariance=torch.zeros_like(good.covariance))])
    with pytest.raises(InputError, match="panel=0 is too small"):
        eliminate([good], panel=0)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-20])
def test_how_small_covariances_are_makes_no_difference(scale: float) -> None:
    """What is left in the rows of a unit that has gone is rounding of large numbers, and not to be solved with."""
    given = [view(24, torch.arange(24).reshape(6, 4), seed) for seed in range(3)]
    low = [View(v.covariance * scale**2, v.output, v.rows) for v in given]
    expected, found = eliminate(given, panel=6), eliminate(low, panel=6)
    assert found.order.tolist() == expected.order.tolist()
    torch.testing.assert_close(found.error / scale**2, expected.error, rtol=1e-6, atol=0)
