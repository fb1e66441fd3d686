"""Thresholds against the definition, written with sets."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.allocate.tod import fraction_need, normalized_need, removal_order, tolerance_curves, tolerance_need
from tests.allocate.oracles import tod_by_sets


def need_of(removal: np.ndarray, protect: np.ndarray, limit: int) -> np.ndarray:
    """Of one group."""
    return tolerance_need(tolerance_curves({0: removal}, {0: protect})[0][:limit])


Signal = st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.5, 7.0, 8.0]), min_size=1, max_size=24)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 24).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0, 9), min_size=n, max_size=n)] * 2)))
def test_counts_equal_the_definition_at_every_tolerance(drawn: tuple[list[float], list[float]]) -> None:
    u, r = drawn
    curve = tod_by_sets(u, r)
    for limit in {0, 1, len(u) // 2, len(u)}:
        need = need_of(np.array(u), np.array(r), limit)
        assert len(need) == limit
        assert (np.diff(need) >= 0).all()
        for alpha in {0.0, 0.05, 0.5, 1.0, *curve}:
            count = max((k for k in range(1, limit + 1) if curve[k - 1] <= alpha), default=0)
            assert int(np.searchsorted(need, alpha, side="right")) == count


def test_groups_do_not_touch_each_other() -> None:
    generator = np.random.default_rng(0)
    sizes = {4: 1, 2: 17, 9: 3, 5: 64}
    removal, protect = ({g: generator.integers(0, 9, n).astype(float) for g, n in sizes.items()} for _ in range(2))
    together = tolerance_curves(removal, protect)
    assert list(together) == list(sizes)
    for g, n in sizes.items():
        assert together[g].tolist() == tolerance_curves({0: removal[g]}, {0: protect[g]})[0].tolist()
        assert len(together[g]) == n
    assert tolerance_curves({}, {}) == {}


@given(Signal)
def test_order_is_ascending_with_ties_by_index(u: list[float]) -> None:
    assert removal_order(np.array(u)).tolist() == sorted(range(len(u)), key=lambda i: (u[i], i))


def test_identical_ranks_need_nothing_until_the_middle() -> None:
    """U and R agree: the k lowest U are the k lowest R, so the prefixes meet only beyond n / 2."""
    scores = np.arange(10.0)
    need = need_of(scores, scores, 10)
    assert need[:5].tolist() == [0.0] * 5
    assert need[5] == 2 / 6
    assert need[9] == 1.0


def test_opposed_ranks_need_all() -> None:
    scores = np.arange(10.0)
    assert need_of(scores, -scores, 9).tolist() == [1.0] * 9


def test_fraction() -> None:
    assert fraction_need(4).tolist() == [1 / 4, 2 / 4, 3 / 4, 1.0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([4.0, 2.0, 6.0], [0.5, 1.0, 1.5]),
        ([3.0, 3.0], [1.0, 1.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([-2.0, 2.0], [-1.0, 1.0]),
        ([5.0], [1.0]),
    ],
)
def test_normalized_scores_are_in_units_of_the_mean(scores: list[float], expected: list[float]) -> None:
    assert normalized_need(np.array(scores)).tolist() == expected
