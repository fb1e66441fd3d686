from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from fairkern.errors import InputError
from fairkern.ops import tod_curve


def by_sets(u: list[float], r: list[float]) -> list[float]:
    """The definition: overlap of two prefixes, ties by position."""
    n = len(u)
    ascending = sorted(range(n), key=lambda i: (u[i], i))
    descending = sorted(range(n), key=lambda i: (-r[i], i))
    return [len(set(ascending[:k]) & set(descending[:k])) / k for k in range(1, n + 1)]


scores = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@given(scores)
def test_equals_the_set_definition_with_ties(pairs):
    u, r = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    assert tod_curve(torch.tensor(u), torch.tensor(r)).tolist() == by_sets(u, r)


@given(st.integers(1, 60).flatmap(lambda n: st.permutations(range(n))))
def test_equals_the_set_definition_on_rankings(ranking):
    u, r = [float(i) for i in range(len(ranking))], [float(i) for i in ranking]
    assert tod_curve(torch.tensor(u), torch.tensor(r)).tolist() == by_sets(u, r)


def test_hand_made():
    u = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert tod_curve(u, u).tolist() == [0.0, 0.0, 2 / 3, 1.0]  # agreement: low removal signal, low protection
    assert tod_curve(u, -u).tolist() == [1.0] * 4  # contradiction everywhere
    assert tod_curve(torch.zeros(3), torch.zeros(3)).tolist() == [1.0] * 3
    assert tod_curve(torch.ones(1), torch.zeros(1)).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_strides(dtype):
    u = torch.tensor([3.0, 0.0, 1.0, 0.0, 2.0, 0.0], dtype=dtype)[::2]
    curve = tod_curve(u, u.clone())
    assert curve.dtype == torch.float64
    assert curve.tolist() == by_sets([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])


def test_infinite_scores_have_ranks():
    curve = tod_curve(torch.tensor([float("inf"), 0.0]), torch.tensor([1.0, float("-inf")]))
    assert curve.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("u", "r", "message"),
    [
        (torch.zeros(0), torch.zeros(0), "n ≥ 1"),
        (torch.zeros(3), torch.zeros(4), r"\(4,\)"),
        (torch.zeros(2, 2), torch.zeros(2, 2), r"\[n\]"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2), "u holds NaN"),
        (torch.zeros(2), torch.tensor([0.0, float("nan")]), "r holds NaN"),
        (torch.zeros(2).long(), torch.zeros(2), "int64"),
        ([0.0], torch.zeros(1), "list"),
    ],
)
def test_bad_input_is_named(u, r, message):
    with pytest.raises(InputError, match=message):
        tod_curve(u, r)
