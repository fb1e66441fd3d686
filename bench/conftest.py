"""`pytest bench --write-results` also writes bench/results/<module>.json; `pytest -m gpu` always writes its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench._compare import Comparison
from bench.provenance import ROOT, write_results

_rows: pytest.StashKey[dict[str, list[dict[str, Any]]]] = pytest.StashKey()
_gpu_rows: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-results", action="store_true", help="write bench/results/<module>.json")
    parser.addoption("--commit", metavar="HASH", help="--commit=HASH: what results name where there is no git checkout")
    parser.addoption("--gpu-results", metavar="FILE", help="--gpu-results=FILE: instead of bench/results/gpu.json")
    parser.addoption("--rehearse", action="store_true", help="a GPU's rows on the CPU, small; needs --gpu-results")
    parser.addoption("--tests-before", metavar="FILE", help="run.json of bench/gpu/run.sh: the tests are counted there")
    parser.addoption("--until", type=float, metavar="SECOND", help="rows begin before this second (Unix); others skip")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = {}
    config.stash[_gpu_rows] = []


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(benchmark, comparison, op=…, shape=…, rival=…)`: into `extra_info` and the results file."""

    def write(benchmark: Any, comparison: Comparison, **what: Any) -> None:
        row = {**what, **comparison.as_dict()}
        benchmark.extra_info.update(row)
        module = request.module.__name__.rpartition(".")[2].removeprefix("test_")
        request.config.stash[_rows].setdefault(module, []).append({"case": request.node.name, **row})

    return write


@pytest.fixture
def record_gpu(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Shows a row at the end of the run."""
    return request.config.stash[_gpu_rows].append


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-results"):
        for module, rows in session.config.stash[_rows].items():
            write_results(ROOT / "bench" / "results" / f"{module}.json", rows=rows)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for module, rows in config.stash[_rows].items():
        terminalreporter.section(f"{module}: rival time / our time")
        for row in rows:
            ours, rival = row["ours_s"]["p50"], row["rival_s"]["p50"]
            terminalreporter.write_line(
                f"{row['case']:<60} {row['ratio']:8.2f}x   {ours * 1e3:9.3f} ms against {rival * 1e3:9.3f} ms"
            )
    rows = config.stash[_gpu_rows]
    if rows:
        terminalreporter.section("gpu: value, bound, met")
    for row in rows:
        free = row["target"] is None
        bound = "" if free else f"{'>=' if row['at_least'] else '<='} {row['target']:g}"
        alone = row.get("value_of_kernels", row.get("value_of_whole_call"))
        beside = "" if alone is None else f"   {'kernels' if 'value_of_kernels' in row else 'whole call'} {alone:.3f}"
        met = "" if free else "met" if row["met"] else "MISSED"
        terminalreporter.write_line(f"{row['case']:<22} {row['value']:9.3f} {bound:<8} {met:<7}{beside}")
