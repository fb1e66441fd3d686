"""What the first batch teaches of a model, what later batches teach besides, and how many forward passes that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk

N = 24
IMAGES = torch.randn(N, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3


class Runs:
    """A count that scoring does not put back, as it does what a module holds itself."""

    def __init__(self) -> None:
        self.count = 0


class Layers(nn.Module):
    """Two layers on [n, 6, 5] and a mean over the six places; `middle` says how they are computed."""

    def __init__(self, middle: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(4, 3)
        self.middle = middle
        self.runs = Runs()

    def forward(self, x: Tensor) -> Tensor:
        self.runs.count += 1
        return self.head(torch.tanh(self.middle(self, x)).mean(1))


def plain(m: Layers, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())


def overwritten(m: Layers, x: Tensor) -> Tensor:
    act = m.a(x).relu()
    out = m.b(act)
    act.zero_()
    return out


def overwritten_where_large(m: Layers, x: Tensor) -> Tensor:
    return overwritten(m, x) if bool(x.max() > 100) else plain(m, x)


def writes(m: Layers, x: Tensor) -> Tensor:
    """Into a tensor that the module holds, and that gradients need."""
    m.ones = vars(m).get("ones", torch.ones(1, dtype=x.dtype))
    return m.b(m.a(x).relu()) * m.ones.fill_(1.0)


def replaces(m: Layers, x: Tensor) -> Tensor:
    m.last = m.a(x).relu()
    return m.b(m.last)


def windows(middle: Callable[[Layers, Tensor], Tensor]) -> Callable[[Layers, Tensor], Tensor]:
    """Three windows of two places for every sample, folded into dimension 0."""
    return lambda m, x: middle(m, x.reshape(-1, 2, 5)).reshape(len(x), 6, 4)


class ByTurns(Layers):
    """Overwrites what one layer read in every other run, and what another read in the runs between."""

    def forward(self, x: Tensor) -> Tensor:
        self.runs.count += 1
        act = self.a(x).relu()
        hidden = torch.tanh(self.b(act)).mean(1)
        out = self.head(hidden)
        (act if self.runs.count % 2 else hidden).zero_()
        return out


def score(model: nn.Module, x: Tensor, y: Tensor, sizes: Sequence[int], **options: object) -> fk.Scores:
    units = fk.trace(model, x[:2], verify=False)
    model.runs.count = 0
    loader = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    return fk.score(model, loader, nn.CrossEntropyLoss(), units=units, projections=4, progress=False, **options)


def same(one: fk.Scores, other: fk.Scores) -> None:
    for signal in one.signals:
        for a, b in zip(one.signals[signal], other.signals[signal], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14, err_msg=signal)
    for name, mean in one.means.items():
        np.testing.assert_allclose(other.means[name], mean, rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ("middle", "sizes", "runs"),
    [
        (plain, (8, 8, 8), 3),
        (overwritten, (8, 8, 8), 1 + 3),  # heard, then heard with copies
        (plain, (6, 6, 6, 6), 1 + 4),  # as many places as samples: the last one alone besides
        (windows(plain), (8, 8, 8), 1 + 3),
        (windows(overwritten), (8, 8, 8), 2 + 3),  # with copies, and the last sample alone
        (windows(overwritten), (0, 8, 16), 2 + 2),  # an empty batch teaches nothing
        (windows(plain), (1, 8, 15), 1 + 3),  # nor does one sample say where others lie
        (windows(plain), (8, 1, 8, 7), 1 + 4),  # or forget where they were
        (windows(plain), (1, 1, 22), 1 + 3),
        (windows(writes), (8, 8, 8), 2 + 3),  # what the last sample alone has written to is not what the batch's was
        (windows(replaces), (8, 8, 8), 2 + 3),
    ],
)
def test_forward_passes(middle: Callable[[Layers, Tensor], Tensor], sizes: Sequence[int], runs: int) -> None:
    model = Layers(middle).double()
    scores = score(model, IMAGES, Y, sizes)
    assert model.runs.count == runs
    same(score(Layers(plain).double(), IMAGES, Y, (N,)), scores)


@pytest.mark.parametrize(
    "middle", [overwritten_where_large, windows(overwritten_where_large)], ids=["plain", "windows"]
)
def test_what_a_later_batch_overwrites_is_copied_from_then_on(middle: Callable[[Layers, Tensor], Tensor]) -> None:
    x = IMAGES.clone()
    x[12, 0, 0] = 200
    model, expected = Layers(middle).double(), score(Layers(plain).double(), x, Y, (N,))
    scores = score(model, x, Y, (8, 8, 8))
    assert model.runs.count == (4 if middle is overwritten_where_large else 5)
    same(expected, scores)


def test_a_model_that_runs_differently_every_time_is_run_until_nothing_is_new() -> None:
    model = ByTurns(plain).double()
    scores = score(model, IMAGES, Y, (12, 12))
    assert model.runs.count == 3 + 1
    same(score(Layers(plain).double(), IMAGES, Y, (N,)), scores)


class Inner(nn.Module):
    """One expert, which may overwrite what its second layer read."""

    def __init__(self, overwrites: bool) -> None:
        super().__init__()
        self.up, self.down, self.overwrites = nn.Linear(8, 6), nn.Linear(6, 8), overwrites

    def forward(self, x: Tensor) -> Tensor:
        act = F.gelu(self.up(x))
        out = self.down(act)
        if self.overwrites:
            act.zero_()
        return out


class Picked(nn.Module):
    """Two experts in a list, each given the rows that are positive in a column of its own."""

    def __init__(self, overwrites: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(Inner(overwrites) for _ in range(2))
        self.runs = Runs()

    def forward(self, x: Tensor) -> Tensor:
        self.runs.count += 1
        entered = self.enter(x)
        out = torch.zeros_like(entered)
        for e, expert in enumerate(self.experts):
            rows = x[:, e] > 0
            out[rows] += expert(entered[rows])
        return self.head(out)


@pytest.mark.parametrize("overwrites", [False, True], ids=["kept", "overwritten"])
@pytest.mark.parametrize(("first", "runs"), [("uneven", 2 + 2), ("even", 1 + 2 + 1)])
def test_modules_that_are_given_other_rows_are_followed(first: str, runs: int, overwrites: bool) -> None:
    x = IMAGES[:, 0].clone()
    if first == "even":
        x[:8, :2] = x[:8, :2].abs()  # all rows go to both
        x[8, :2] = torch.tensor([-1.0, 1.0])
        runs += overwrites  # which shows with the first batch already
    expected, model = score(Picked().double(), x, Y, (N,)), Picked(overwrites).double()
    scores = score(model, x, Y, (8, 8, 8))
    assert model.runs.count == runs
    same(expected, scores)


class Tokens(nn.Module):
    """An MLP on tokens that are folded into rows, as many per sample as the batch has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.b(self.a(x.reshape(-1, 5)).relu())
        return rows.view(*x.shape[:2], 3).mean(1)


@pytest.mark.parametrize("sizes", [(6, 5), (6, 1, 5), (1, 6, 5), (2, 2), (3, 3, 1)])
def test_batches_may_have_samples_of_other_lengths(sizes: Sequence[int]) -> None:
    """Rows per sample are learned anew where a batch shows others; without classes lengths are nobody's business."""
    model, generator = Tokens().double().eval(), torch.Generator().manual_seed(3)
    lengths = [5, 7, 3]
    loader = [
        (torch.randn(n, length, 5, dtype=torch.float64, generator=generator), torch.arange(n) % 3)
        for n, length in zip(sizes, lengths, strict=False)
    ]
    singly = [(x[i : i + 1], y[i : i + 1]) for x, y in loader for i in range(len(x))]
    units = fk.trace(model, loader[0][0], verify=False)
    found = [
        fk.score(model, batches, nn.CrossEntropyLoss(), units=units, class_of=False, gram=True, progress=False)
        for batches in (loader, singly)
    ]
    np.testing.assert_allclose(found[0].signals["taylor"][0], found[1].signals["taylor"][0], rtol=1e-9)
    for name, moments in found[0].moments.items():
        np.testing.assert_allclose(moments.gram, found[1].moments[name].gram, rtol=1e-9, atol=1e-12)
        assert moments.count == found[1].moments[name].count
