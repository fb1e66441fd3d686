"""What differs by no more than rounding is a tie, and ties go by index: plans are the same whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern import ops
from fairkern.ops.eliminate import reference
from fairkern.ties import TOLERANCE, classes, levels, rounding

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

# well apart, and each as large as rounding may make it
VALUES = st.lists(st.sampled_from([-2.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 7.0]), min_size=1, max_size=20)


def shaken(values: np.ndarray, seed: int, by: float) -> np.ndarray:
    return values + np.random.default_rng(seed).uniform(-by, by, len(values)) * np.maximum(np.abs(values), 1e-3)


@given(VALUES, st.integers(0, 99))
def test_rounding_does_not_change_classes(drawn: list[float], seed: int) -> None:
    values = np.array(drawn)
    expected = np.unique(values, return_inverse=True)[1].reshape(-1)
    near = shaken(values, seed, 1e-8)
    off = np.full(len(values), 1e-6)
    assert classes(values, off).tolist() == classes(near, off).tolist() == expected.tolist()


@given(st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=9), min_size=1, max_size=5))
def test_levels_are_the_classes_of_every_group(drawn: list[list[float]]) -> None:
    groups, sizes = [np.array(g) for g in drawn], [len(g) for g in drawn]
    found = np.split(levels(np.concatenate(groups), sizes), np.cumsum(sizes)[:-1])
    for values, own in zip(groups, found, strict=True):
        off = rounding(values, [len(values)])
        middle = np.sort(values)[(len(values) - 1) // 2]
        assert off.tolist() == (TOLERANCE * np.maximum(values, middle)).tolist()
        assert own.tolist() == classes(values, off).tolist()
        assert (np.diff(own[np.argsort(values, kind="stable")]) >= 0).all()


def test_chains_and_wide_intervals() -> None:
    steps = np.arange(5) * 0.9
    assert classes(steps, np.full(5, 1.0)).tolist() == [0] * 5, "each is tied with the next, and so with all"
    assert classes(np.array([0.0, 1.0, 2.0]), np.array([0.1, 5.0, 0.1])).tolist() == [0, 0, 0]
    assert classes(np.array([0.0, 0.3, 2.0, 9.0]), np.array([0.1, 0.1, 5.0, 0.1])).tolist() == [0, 0, 0, 1]
    assert classes(np.zeros(0), np.zeros(0)).tolist() == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 12))
def test_elimination_is_that_of_the_definition_however_moments_are_rounded(seed: int, panel: int) -> None:
    """Copies of a unit, scaled ones too, and dead ones: singular but for the ridge."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(50, 5, dtype=torch.float64, generator=generator)
    copies = [0, 3, 1, 0, 2, 4, 3, 1]
    scales = torch.tensor([1, 1, 1, 1, 1, 1, 2, 1, 0, 0], dtype=torch.float64)
    a = base[:, [*copies, 0, 0]] * scales
    w = torch.randn(5, 3, dtype=torch.float64, generator=generator)[[*copies, 0, 0]] / scales.clamp(min=1)[:, None]
    w[8:] = w[0]
    covariance, rows = torch.cov(a.T), torch.arange(10)[:, None]
    covariance += 1e-4 * covariance.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    off = 1 + 1e-7 * (torch.rand(10, 10, dtype=torch.float64, generator=generator) - 0.5)
    view = ops.View(covariance, w @ w.T, rows)
    near = view._replace(covariance=covariance * (off + off.T) / 2)
    order = reference.eliminate([covariance], [view.output], [rows])[0].tolist()
    assert ops.eliminate([view], panel=10).order.tolist() == order
    assert ops.eliminate([near], panel=10).order.tolist() == order
    assert ops.eliminate([view], panel=panel).order.tolist() == ops.eliminate([near], panel=panel).order.tolist()


class Net(nn.Module):
    """Channels, some of them copies, scaled copies or dead; a stream that two layers share, and neurons."""

    def __init__(self, seed: int, copies: list[tuple[int, int]], scale: float, dead: list[int]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.a, self.b = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 12), (12, 8), (8, 12)))
        self.norm, self.hidden, self.head = nn.BatchNorm2d(12), nn.Linear(12, 10), nn.Linear(10, 3)
        with torch.no_grad():
            for made, read, n in ((self.stem, None, 12), (self.a, self.b, 8), (self.hidden, self.head, 10)):
                for first, second in copies if read is not None else ():
                    first, second = first % n, second % n
                    if first != second:
                        made.weight[second], made.bias[second] = scale * made.weight[first], scale * made.bias[first]
                        read.weight[:, second] = read.weight[:, first] / scale
                for unit in dead:
                    made.weight[unit % n] = 0
                    made.bias[unit % n] = -1
            for first, second in copies:
                first, second = first % 12, second % 12
                for made in (self.stem, self.b):
                    made.weight[second], made.bias[second] = made.weight[first], made.bias[first]
                for read in (self.a, self.hidden):
                    read.weight[:, second] = read.weight[:, first]
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(self.hidden(x.relu().mean((2, 3))).relu())


def batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    labels = torch.arange(30) % 3
    x = torch.randn(30, 3, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.3 * labels[:, None, None, None]
    return zip(x.split(size), labels.split(size), strict=True)


PLANS = (
    {"tod": 0.4},
    {"keep_params": 0.5},
    {"keep_flops": 0.6, "allocation": "tod"},
    {"keep_params": 0.4, "allocation": "global", "removal": "taylor"},
    {"keep_params": 0.7, "allocation": "normalized", "removal": "wasserstein"},
    {"keep_params": 0.6, "allocation": "uniform"},
)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=4),
    st.sampled_from([1.0, 2.0, 0.7]),
    st.lists(st.integers(0, 11), max_size=3),
)
def test_the_plan_is_the_same_whatever_the_batch_size(
    seed: int, copies: list[tuple[int, int]], scale: float, dead: list[int]
) -> None:
    model, loss = Net(seed, copies, scale, dead), nn.CrossEntropyLoss()
    units = fk.trace(model, next(batches(2))[0], verify=False)
    plans = []
    for size in (1, 3, 7, 30):
        scores = fk.score(model, batches(size), loss, units=units, gram=True, projections=16, progress=False)
        plans.append([[g.removed.tolist() for g in scores.plan(**asked).groups] for asked in PLANS])
    for other in plans[1:]:
        assert other == plans[0]


def test_of_copies_that_rounding_tells_apart_the_first_goes() -> None:
    units = fk.trace(Net(0, [], 1.0, []), next(batches(2))[0], verify=False)
    u, r = (tuple(np.linspace(1, 2, g.units) for g in units.groups) for _ in range(2))
    for values, size in ((u, 1e-8), (r, -1e-8)):
        for own in values:
            own[2:6] = own[2] + size * np.array([3, 1, 0, 2])
    scores = fk.Scores(units, {"wasserstein": u, "taylor": r}, {})
    for asked in ({"tod": 0.2}, {"keep_params": 0.8, "allocation": "global"}):
        for group in scores.plan(**asked).groups:
            assert group.removed.tolist() == list(range(len(group.removed)))
    exact = scores.plan(keep_params=0.6, allocation="uniform", removal=lambda g: u[units.groups.index(g)])
    assert any(group.removed.tolist() != list(range(len(group.removed))) for group in exact.groups), (
        "given, not measured"
    )
