"""Ordering units by second-order saliency. `pytest bench/test_elimination.py --write-results`.

With `-m "not gpu"` the width of 14,336 as well, which takes minutes, and 6 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import _panels
from bench._compare import Comparison, bound, host_clock, in_turn
from bench._training import threads
from fairkern.ops import Elimination, View, eliminate
from fairkern.ops.eliminate.config import PANEL

RATE, SPEEDUP = 0.6, 4.0  # of a product's rate; times as fast as before
SECONDS = {4096: 60.0, 14_336: 25 * 60.0}


def layer(n: int) -> View:
    """As many causes as an eighth of the units, seen through noise, with a ridge; weights of half as many outputs."""
    generator = torch.Generator().manual_seed(0)
    causes, weight = (torch.randn(n, n // k, dtype=torch.float64, generator=generator) for k in (8, 2))
    covariance = causes @ causes.T
    covariance.diagonal().add_(0.1 * float(covariance.diagonal().mean()))
    return View(covariance, weight @ weight.T, torch.arange(n)[:, None])


class Ordering:
    """Orders a layer in the memory of copies, which are made anew outside of the clock."""

    def __init__(self, given: View) -> None:
        self.given = given
        self._room = View(torch.empty_like(given.covariance), torch.empty_like(given.output), given.rows)
        self.found: Elimination | None = None

    def copied(self) -> None:
        self._room.covariance.copy_(self.given.covariance)
        self._room.output.copy_(self.given.output)

    def __call__(self) -> None:
        self.found = eliminate([self._room], overwrite=True)

    def by_blocks(self) -> None:
        """As wide matrices are ordered, and small ones were: blocks of steps, and products between them."""
        eliminate([self._room], overwrite=True, panel=PANEL)

    def against(self, rival: Callable[[], object], rounds: int, warmup: int = 1) -> Comparison:
        def read(call: Callable[[], object]) -> float:
            self.copied()
            return host_clock(call)

        self.copied()
        return Comparison(*in_turn((self, rival), rounds, warmup, read))


def product(given: View) -> Callable[[], Tensor]:
    """A float64 product of the same size: n³ multiply-adds, as ordering takes."""
    out = torch.empty_like(given.output)
    return lambda: torch.mm(given.covariance, given.output, out=out)


def against_a_product(n: int, rounds: int) -> Comparison:
    given = layer(n)
    return Ordering(given).against(product(given), rounds)


def against_before(n: int, rounds: int) -> Comparison:
    given = layer(n)
    return Ordering(given).against(lambda: _panels.eliminate(given), rounds, warmup=0)


def against_blocks(n: int, rounds: int) -> Comparison:
    ordering = Ordering(layer(n))
    return ordering.against(ordering.by_blocks, rounds, warmup=0)  # both lose the copies, which the clock makes


def write(benchmark: Any, record: Callable[..., None], timed: Comparison, **what: Any) -> None:
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, timed, op="eliminate", threads=torch.get_num_threads(), **what)


def test_the_rate_of_a_product_at_2048(benchmark: Any, record: Callable[..., None]) -> None:
    timed = against_a_product(2048, 7)
    what = timed.bound("ratio", RATE, at_least=True)
    write(benchmark, record, timed, shape=[2048, 2048], rival="a float64 product of the same size", **what)


def test_before_at_2048(benchmark: Any, record: Callable[..., None]) -> None:
    timed = against_before(2048, 3)
    what = timed.bound("ratio", SPEEDUP, at_least=True)
    write(benchmark, record, timed, shape=[2048, 2048], rival="elimination by panels, as it was", **what)


@pytest.mark.parametrize("n", [32, 64, 128, 256, 512])
def test_small_ones(n: int, benchmark: Any, record: Callable[..., None]) -> None:
    with threads(1):  # scoring orders several at a time, each on one thread
        timed = against_blocks(n, 21)
        what = timed.bound("ratio", SPEEDUP, at_least=True)
        write(benchmark, record, timed, shape=[n, n], rival="products between blocks of steps, as it was", **what)


@pytest.mark.parametrize("n", [4096, pytest.param(14_336, marks=pytest.mark.large)])
def test_seconds(n: int, benchmark: Any, record: Callable[..., None]) -> None:
    timed = against_a_product(n, 3 if n < 8192 else 1)
    seconds = timed.ours.p50
    what = {"bounded": "seconds", "seconds": seconds, **bound(seconds, SECONDS[n], at_least=False)}
    write(benchmark, record, timed, shape=[n, n], rival="a float64 product of the same size", **what)
