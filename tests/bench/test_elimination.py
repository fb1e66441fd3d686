"""The benchmark of elimination at small sizes, and that its rival does what it did."""

from __future__ import annotations

import pytest
import torch

from bench import _panels
from bench import test_elimination as bench
from fairkern.ops.eliminate import reference


def test_the_rival_orders_nearly_as_well() -> None:
    given = bench.layer(96)
    ordering = bench.Ordering(given)
    ordering.copied()
    ordering()
    before = _panels.eliminate(given)[0]
    assert ordering.found is not None
    assert sorted(before.tolist()) == list(range(96))
    for k in (16, 48, 80):
        ours, theirs = (reference.cost(given.covariance, given.output, o[:k]) for o in (ordering.found.order, before))
        assert theirs == pytest.approx(ours, rel=0.05)


def test_every_round_orders_the_same_layer() -> None:
    given = bench.layer(64)
    before = given.covariance.clone()
    ordering = bench.Ordering(given)
    ordering.against(bench.product(given), rounds=1)
    once = ordering.found
    timed = ordering.against(bench.product(given), rounds=2)
    assert once is not None
    assert ordering.found is not None
    assert torch.equal(ordering.found.order, once.order)
    assert torch.equal(given.covariance, before)
    assert timed.ours.rounds == 2
    assert timed.ratio > 0


def test_the_cases_run_at_small_sizes() -> None:
    for compared in (bench.against_a_product, bench.against_before, bench.against_blocks):
        assert compared(64, 1).ours.p50 > 0
