"""The last part of `pytest -m gpu`: what the operators and scoring reach on this GPU, into bench/results/gpu.json.

A missed target is a row that says so; a test fails where a result is wrong or cannot be measured.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu.cases import Bench, Case
from bench.gpu.machine import Cuda, StandIn
from bench.gpu.results import Results
from bench.gpu.table import CASES
from bench.gpu.workloads import FULL, TINY
from bench.provenance import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.config.getoption("--rehearse"):
        return Bench(StandIn(), TINY)
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("times are taken by one process alone; run bench/test_gpu.py without -n")
    return Bench(Cuda(), FULL)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Results:
    path, rehearsed = request.config.getoption("--gpu-results"), request.config.getoption("--rehearse")
    if rehearsed and path is None:
        raise pytest.UsageError("--rehearse measures nothing: say where its file goes, with --gpu-results=FILE")
    path = ROOT / "bench" / "results" / "gpu.json" if path is None else Path(path)
    return Results(path, request.config.getoption("--commit"))


@pytest.fixture(autouse=True)
def memory_back() -> Iterator[None]:
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def passed_before(config: pytest.Config) -> dict[str, int]:
    """How many have passed, failed and been skipped, in this process or, where steps run apart, in those before it."""
    if path := config.getoption("--tests-before"):
        rows = json.loads(Path(path).read_text())["rows"]
        return dict(sum((Counter(row["tests"]) for row in rows if "tests" in row), Counter()))
    counted = config.pluginmanager.get_plugin("terminalreporter").stats
    return {outcome: len(counted.get(outcome, ())) for outcome in ("passed", "failed", "error", "skipped")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_row(
    case: Case,
    bench: Bench,
    results: Results,
    request: pytest.FixtureRequest,
    record_gpu: Callable[[dict[str, Any]], None],
) -> None:
    until = request.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time is left")
    row = case.row(bench)
    results.add(row, bench, passed_before(request.config))
    record_gpu(row)
