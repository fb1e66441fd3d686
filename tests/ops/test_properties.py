"""Operators on free-form input, drawn by hypothesis."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import wasserstein_distance

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.ops import class_wasserstein, gather, wasserstein_1d
from tests.ops.test_gather import assert_taken, numbered, tensors
from tests.tolerances import assert_close


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_shapes_and_indices(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4), label="shape"))
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1)), label="dims")
    indices = {d: data.draw(st.lists(st.integers(0, shape[d] - 1), max_size=9)) for d in dims}
    weight = numbered(shape, torch.bfloat16)
    assert_taken(gather(weight, tensors(indices)), weight, indices)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=12),
    st.lists(st.integers(-50, 50), min_size=1, max_size=12),
)
def test_both_operators_agree_on_two_classes(first, second):
    x, y = torch.tensor(first, dtype=torch.float64)[:, None], torch.tensor(second, dtype=torch.float64)[:, None]
    labels = torch.tensor([0] * len(first) + [1] * len(second))
    expected = torch.tensor([wasserstein_distance(first, second)], dtype=torch.float64)
    assert_close(wasserstein_1d(x, y), expected, torch.float64, scale=50)
    assert_close(class_wasserstein(torch.cat((x, y)), labels), expected, torch.float64, scale=50)
