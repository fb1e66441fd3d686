"""The definitions themselves, each against another way to compute it; and wherever tensors are made by default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fairkern.ops.eliminate import reference as eliminate
from fairkern.ops.gather import reference as gather
from fairkern.ops.gram import reference as gram
from fairkern.ops.project import reference as project
from fairkern.ops.taylor import reference as taylor
from fairkern.ops.tod import reference as tod
from fairkern.ops.wasserstein import reference as wasserstein


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(n: int, seed: int = 0) -> Tensor:
    """A covariance of n correlated positions."""
    a = drawn(4 * n, n, seed=seed)
    a[:, 1:] += 0.7 * a[:, :-1]
    return a.T @ a / len(a)


ORDER, OFFSETS = torch.tensor([0, 3, 1, 4, 5, 2, 6]), torch.tensor([0, 2, 5, 7])  # three classes of seven samples
CALLS: dict[str, tuple[Any, ...]] = {
    "cost": (eliminate.cost, spread(6), spread(6, 1), torch.tensor([1, 4])),
    "given": (eliminate.given, spread(6), spread(6, 1), torch.tensor([2, 3]), torch.tensor([1, 4])),
    "eliminate": (eliminate.eliminate, [spread(4)], [spread(4, 1)], [torch.arange(4)[:, None]]),
    "gather": (gather.gather, drawn(3, 4), {1: torch.tensor([2, 0])}),
    "gather by rows": (gather.gather, drawn(2, 4), {1: torch.tensor([[2, 0], [1, 3]])}),
    "gram": (gram.gram, drawn(5, 3), 1),
    "project": (project.project, drawn(5, 3, 2), drawn(2, 4)),
    "directions": (project.directions, 3, 2, 5),
    "taylor": (taylor.taylor_sums, drawn(5, 3, 2), drawn(5, 3, 2, seed=1), 1),
    "tod": (tod.tod_curves, drawn(7), drawn(7, seed=1), [3, 4]),
    "wasserstein": (wasserstein.wasserstein_1d, drawn(7, 2), drawn(5, 2, seed=1), 2),
    "class wasserstein": (wasserstein.class_wasserstein, drawn(7, 3, 2), ORDER, OFFSETS, "mean"),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_are_made_where_the_input_is(name: str) -> None:
    """With another default device and dtype the same numbers come out."""
    call, *given = CALLS[name]
    expected = call(*given)
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            found = call(*given)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def fitted_away(covariance: np.ndarray, removed: list[int]) -> tuple[list[int], np.ndarray]:
    """What stays, and the map from all positions to it that tells the removed ones best."""
    kept = [i for i in range(len(covariance)) if i not in removed]
    best = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, removed)])
    onto = np.zeros((len(kept), len(covariance)))
    onto[range(len(kept)), kept] = 1
    onto[:, removed] = best
    return kept, onto


@pytest.mark.parametrize("removed", [[2], [0, 3], [5, 1, 4]])
def test_the_cost_of_a_removal_is_the_error_of_the_best_fit(removed: list[int]) -> None:
    c, h = spread(6).numpy(), spread(6, 1).numpy()
    kept, onto = fitted_away(c, removed)
    gap = np.eye(6) - onto.T @ np.eye(6)[kept]  # what a fit of all positions by those that stay leaves
    expected = np.trace(gap @ c @ gap.T @ h)
    assert eliminate.cost(*map(torch.from_numpy, (c, h)), torch.tensor(removed)) == pytest.approx(expected)


@pytest.mark.parametrize("unit", [[0], [2, 5]])
@pytest.mark.parametrize("removed", [[], [3], [1, 4]])
def test_what_a_unit_gives_is_its_own_power_after_the_fit(unit: list[int], removed: list[int]) -> None:
    c, h = spread(6).numpy(), spread(6, 1).numpy()
    kept, onto = fitted_away(c, removed)
    weight = onto @ h @ onto.T
    expected = sum(c[p, p] * weight[kept.index(p), kept.index(p)] for p in unit)
    gone = torch.tensor(removed, dtype=torch.int64)
    assert eliminate.given(torch.from_numpy(c), torch.from_numpy(h), torch.tensor(unit), gone) == pytest.approx(
        expected
    )


def test_costs_that_rounding_tells_apart_are_ties() -> None:
    first = eliminate.first_of_least
    assert first(np.array([2.0, 1.0, 1.0]), np.zeros(3)) == 1
    assert first(np.array([2.0, 1.1, 1.0]), np.array([0.0, 0.2, 0.0])) == 1, "the first may be off"
    assert first(np.array([2.0, 1.1, 1.0]), np.array([0.0, 0.0, 0.2])) == 1, "the least may be"
    assert first(np.array([2.0, 1.1, 1.0]), np.array([0.5, 0.05, 0.05])) == 2
    assert first(np.array([1.5, 1.0]), np.array([0.0, 0.5])) == 0


def test_units_go_one_after_the_other_by_their_added_cost() -> None:
    """Two views, units of two positions in one of them; each step against all that were left."""
    covariances, outputs = [spread(6), spread(4, 2)], [spread(6, 1), spread(4, 3)]
    rows = [torch.tensor([[0, 5], [1, 4], [2, 3]]), torch.tensor([[3], [1], [0]])]
    order, added = eliminate.eliminate(covariances, outputs, rows)
    gone: list[int] = []
    before = 0.0
    for unit, step in zip(order.tolist(), added.tolist(), strict=True):
        costs = {}
        for other in set(range(3)) - set(gone):
            costs[other] = 0.0
            for c, h, r in zip(covariances, outputs, rows, strict=True):
                costs[other] += eliminate.cost(c, h, r[[*gone, other]].reshape(-1))
        assert unit == min(costs, key=costs.__getitem__)
        assert step == pytest.approx(costs[unit] - before)
        before = costs[unit]
        gone.append(unit)
    assert added.dtype == torch.float64


def test_a_gram_matrix_of_more_vectors_than_a_stretch_of_rows() -> None:
    x = drawn(9, 300)
    products, total = gram.gram(x, 1)
    torch.testing.assert_close(products, x.T @ x)
    torch.testing.assert_close(total, x.sum(0))
    assert torch.equal(products, products.T)


def test_a_gram_matrix_is_computed_to_the_right_of_its_diagonal_only() -> None:
    n, rows = 2 * gram.ROWS + 44, gram.ROWS
    with FlopCounterMode(display=False) as count:
        gram.gram(torch.ones(n, 1), 0)
    assert count.get_total_flops() == 2 * (rows * n + rows * (n - rows) + 44 * 44)


def test_directions_are_drawn_in_float64() -> None:
    expected = drawn(4, 3, seed=9).numpy().T
    expected = expected / np.linalg.norm(expected, axis=0)
    found = project.directions(3, 4, 9)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)
    into = torch.empty(2, 5, 4)
    assert project.project(torch.ones(2, 5, 3), found, into) is into


@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 1), ((4, 3, 5), 1), ((4, 3, 5), 2), ((4, 2, 3, 5), 2)])
def test_taylor_sums_by_loops(shape: tuple[int, ...], dim: int) -> None:
    act, grad = drawn(*shape), drawn(*shape, seed=1)
    product = np.moveaxis((act * grad).numpy(), dim, 1).reshape(shape[0], shape[dim], -1).sum(2)
    total, absolute, plain = taylor.taylor_sums(act, grad, dim)
    np.testing.assert_allclose(total, product.sum(0))
    np.testing.assert_allclose(absolute, np.abs(product).sum(0))
    np.testing.assert_allclose(plain, np.moveaxis(act.numpy(), dim, -1).reshape(-1, shape[dim]).sum(0))
    sums = tuple(torch.ones(3) for _ in range(3))
    taylor.add(sums, tuple(torch.full((3,), k, dtype=torch.float64) for k in (2.0, 3.0, 4.0)), 10.0)
    assert [s.tolist() for s in sums] == [[21.0] * 3, [31.0] * 3, [5.0] * 3]


def test_quantile_steps_are_the_common_refinement() -> None:
    i, j, widths = wasserstein.quantile_steps(2, 3, torch.device("cpu"))
    assert i.tolist() == [0, 0, 1, 1]
    assert j.tolist() == [0, 1, 1, 2]
    assert widths.tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])
    assert widths.dtype == torch.float64


@pytest.mark.parametrize(("n", "m"), [(5, 5), (1, 4), (4, 6), (7, 3)])
@pytest.mark.parametrize("p", [1, 2])
def test_distances_are_those_between_repeated_samples(n: int, m: int, p: int) -> None:
    """Both repeated until they are as many: then the sorted ones are paired."""
    x, y = drawn(n, 2), drawn(m, 2, seed=1)
    gap = np.abs(np.repeat(np.sort(x, 0), m, 0) - np.repeat(np.sort(y, 0), n, 0))
    expected = (gap**p).mean(0) ** (1 / p)
    np.testing.assert_allclose(wasserstein.wasserstein_1d(x, y, p), expected)


def test_distances_of_classes_are_reduced() -> None:
    x = drawn(7, 3, 2)
    classes = [x[[0, 3]], x[[1, 4, 5]], x[[2, 6]]]
    pairs = [
        torch.stack([wasserstein.wasserstein_1d(classes[j][..., k], classes[i][..., k], 1) for k in range(2)]).mean(0)
        for j, i in ((0, 1), (0, 2), (1, 2))
    ]
    every = torch.stack(pairs)
    expected = {"pairs": every, "max": every.amax(0), "mean": every.mean(0)}
    for reduce, value in expected.items():
        torch.testing.assert_close(wasserstein.class_wasserstein(x, ORDER, OFFSETS, reduce), value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_gathered_elements_keep_their_bytes(dtype: torch.dtype) -> None:
    weight = (torch.arange(24) * 7 % 13).to(dtype).reshape(2, 3, 4)
    indices = {2: torch.tensor([3, 0]), 1: torch.tensor([2, 2, 0])}
    found = gather.gather(weight, indices)
    assert torch.equal(found, weight[:, [2, 2, 0]][..., [3, 0]])
    assert found.is_contiguous()
    own = gather.gather(weight, {0: torch.tensor([1, 0]), 2: torch.tensor([[0, 1], [3, 3]])})
    assert torch.equal(own, torch.stack([weight[1][:, [0, 1]], weight[0][:, [3, 3]]]))
    copied = gather.gather(weight.transpose(0, 2), {})
    assert torch.equal(copied, weight.transpose(0, 2))
    assert copied.is_contiguous()
    whole = gather.gather(weight, {})
    assert whole.data_ptr() != weight.data_ptr()
