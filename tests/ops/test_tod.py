from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairkern.errors import InputError
from fairkern.ops import tod_curve, tod_curves


def by_sets(u: list[float], r: list[float]) -> list[float]:
    """The definition: overlap of two prefixes, ties by position."""
    n = len(u)
    ascending = sorted(range(n), key=lambda i: (u[i], i))
    descending = sorted(range(n), key=lambda i: (-r[i], i))
    return [len(set(ascending[:k]) & set(descending[:k])) / k for k in range(1, n + 1)]


scores = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


BACKENDS = ["reference", "native"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        request.getfixturevalue("extension")
    return request.param


@given(pairs=scores)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_set_definition_with_ties(pairs, backend):
    u, r = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    assert tod_curve(torch.tensor(u), torch.tensor(r), backend=backend).tolist() == by_sets(u, r)


@given(ranking=st.integers(1, 60).flatmap(lambda n: st.permutations(range(n))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_set_definition_on_rankings(ranking, backend):
    u, r = [float(i) for i in range(len(ranking))], [float(i) for i in ranking]
    assert tod_curve(torch.tensor(u), torch.tensor(r), backend=backend).tolist() == by_sets(u, r)


def test_hand_made(backend):
    u = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert tod_curve(u, u, backend=backend).tolist() == [0.0, 0.0, 2 / 3, 1.0]  # agreement
    assert tod_curve(u, -u, backend=backend).tolist() == [1.0] * 4  # contradiction everywhere
    assert tod_curve(torch.zeros(3), torch.zeros(3), backend=backend).tolist() == [1.0] * 3
    assert tod_curve(torch.ones(1), torch.zeros(1), backend=backend).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_strides(dtype, backend):
    u = torch.tensor([3.0, 0.0, 1.0, 0.0, 2.0, 0.0], dtype=dtype)[::2]
    curve = tod_curve(u, u.clone(), backend=backend)
    assert curve.dtype == torch.float64
    assert curve.tolist() == by_sets([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])


def test_infinite_scores_have_ranks(backend):
    curve = tod_curve(torch.tensor([float("inf"), 0.0]), torch.tensor([1.0, float("-inf")]), backend=backend)
    assert curve.tolist() == [0.0, 1.0]


def test_zeros_of_either_sign_are_a_tie(backend):
    u, r = torch.tensor([0.0, -0.0, 0.0, -1.0]), torch.tensor([-0.0, 0.0, 2.0, 0.0])
    curve = tod_curve(u, r, backend=backend)
    assert curve.tolist() == by_sets(u.tolist(), r.tolist())


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


@given(groups=st.lists(scores, min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_groups_at_once_equal_one_by_one(groups, backend):
    curves = [by_sets([float(a) for a, _ in pairs], [float(b) for _, b in pairs]) for pairs in groups]
    flat = torch.tensor([pair for pairs in groups for pair in pairs], dtype=torch.float64)
    together = tod_curves(flat[:, 0], flat[:, 1], [len(pairs) for pairs in groups], backend=backend)
    assert together.dtype == torch.float64
    assert together.tolist() == [value for curve in curves for value in curve]


def test_the_groups_of_a_large_model(backend):
    """Enough for threads; sizes from 1 to 2048."""
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 2048, 64, 700, 3, 512, 512]
    u, r = (torch.randint(0, 300, (sum(sizes),), generator=generator).double() for _ in range(2))
    curves = tod_curves(u, r, sizes, backend=backend).split(sizes)
    for own_u, own_r, curve in zip(u.split(sizes), r.split(sizes), curves, strict=True):
        assert curve.tolist() == by_sets(own_u.tolist(), own_r.tolist())


@pytest.mark.parametrize(
    ("values", "sizes", "message"),
    [
        (torch.zeros(3), [1, 1], "make 3 together"),
        (torch.zeros(3), [3, 0], "at least 1"),
        (torch.zeros(3), [], "at least 1"),
        (torch.tensor([0.0, float("nan")]), [1, 1], "u holds NaN"),
        (torch.zeros(2, 1), [2], r"\[n\]"),
    ],
)
def test_bad_sizes_are_named(values, sizes, message):
    with pytest.raises(InputError, match=message):
        tod_curves(values, torch.zeros_like(values), sizes)
