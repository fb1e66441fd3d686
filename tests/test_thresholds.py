"""The thresholds that the operators use are those that were measured."""

from __future__ import annotations

import json

import pytest

from bench import thresholds
from fairkern.ops.wasserstein import config

MEASURED = json.loads(thresholds.RESULTS.read_text())


def test_the_cpu_sorts_as_measured() -> None:
    limits = {str(dtype).removeprefix("torch."): limit for dtype, limit in config.NETWORK_LIMIT.items()}
    assert limits == MEASURED["thresholds"]["cpu"]


def test_the_gpu_sorts_as_measured() -> None:
    limit = MEASURED["thresholds"]["cuda"]["float32"]
    if limit is None:
        pytest.skip("not measured: the results are of a machine without a GPU")
    assert config.NETWORKS[-1] == limit


def test_the_thresholds_are_those_of_the_rows() -> None:
    for device, by_dtype in MEASURED["thresholds"].items():
        for dtype, limit in by_dtype.items():
            rows = [row for row in MEASURED["rows"] if (row["device"], row["dtype"]) == (device, dtype)]
            assert limit == (thresholds.threshold(rows) if rows else None)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([{"network": 1.0, "column": 2.0}, {"network": 1.0, "column": 1.2}, {"network": 2.0, "column": 1.0}], 16),
        ([{"network": 1.0, "column": 2.0}, {"network": 1.0, "column": 1.05}], 8),  # as good as equal
        ([{"network": 1.0, "column": 0.5}, {"network": 1.0, "column": 9.0}], 0),
        ([{"network": 1.0, "column": 2.0, "torch.sort": 0.9}], 0),
        ([{"network": 1.0, "column": 2.0}, {"column": 1.0}, {"network": 1.0, "column": 2.0}], 8),
    ],
)
def test_threshold(medians: list[dict[str, float]], expected: int) -> None:
    rows = [
        {"n": 8 << i, "seconds": {name: {"p50": seconds} for name, seconds in here.items()}}
        for i, here in enumerate(medians)
    ]
    assert thresholds.threshold(rows) == expected
