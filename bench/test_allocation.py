"""A new budget from stored scores, on the groups, shapes and costs of ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench._compare import compare
from fairkern.allocate import allocate
from fairkern.artefacts import load_scores, save_scores
from fairkern.plans.cost import Cost
from fairkern.types import Scores
from tests.allocate.oracles import tod_by_sets
from tests.synthetic import random_scores, resnet50

LIMIT_S = 0.050
CASES: dict[str, dict[str, Any]] = {
    "tod": {"tod": 0.2},
    "keep_params": {"keep_params": 0.5},
    "keep_flops": {"keep_flops": 0.5},
    "keep_flops_round_8": {"keep_flops": 0.5, "round_to": 8},
    "uniform": {"keep_params": 0.5, "allocation": "uniform"},
    "global": {"keep_params": 0.5, "allocation": "global"},
}


@pytest.fixture(scope="module")
def scores() -> Scores:
    return random_scores(resnet50().build(), seed=0)


def curves_by_sets(scores: Scores) -> None:
    """ToD of every group as it is defined, and nothing else: no budget, no plan."""
    for u, r in zip(scores.signals["wasserstein"], scores.signals["taylor"], strict=True):
        tod_by_sets(u.tolist(), r.tolist())


@pytest.mark.parametrize("case", CASES)
def test_a_new_budget(case: str, benchmark: Any, scores: Scores, record: Callable[..., None]) -> None:
    def ours() -> object:
        return allocate(scores, **CASES[case])

    comparison = compare(ours, lambda: curves_by_sets(scores), rounds=5)
    record(benchmark, comparison, op="allocate", shape="ResNet-50", rival="ToD curves by their definition, alone")
    benchmark.pedantic(ours, rounds=20, warmup_rounds=3)
    assert comparison.ours.p50 < LIMIT_S


def test_from_the_file(benchmark: Any, scores: Scores, record: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save_scores(scores, path)

    def ours() -> object:
        return allocate(load_scores(path), keep_params=0.5)

    comparison = compare(ours, lambda: allocate(scores, keep_params=0.5), rounds=15)
    record(benchmark, comparison, op="load and allocate", shape="ResNet-50", rival="the same scores in memory")
    benchmark.pedantic(ours, rounds=20, warmup_rounds=3)
    assert comparison.ours.p50 < LIMIT_S


def test_one_cost(benchmark: Any, scores: Scores) -> None:
    cost = Cost(scores.units, scores.units.params)
    removed = np.ones(len(scores.units.groups), dtype=np.int64)
    benchmark(cost, removed)
    benchmark.extra_info["p50_s"] = benchmark.stats.stats.median
    assert benchmark.stats.stats.median < 50e-6
