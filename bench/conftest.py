"""`pytest bench --write-results` also writes bench/results/<module>.json; `pytest -m gpu` always writes its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from bench._compare import Comparison

ROOT = Path(__file__).resolve().parent.parent
_rows: pytest.StashKey[dict[str, list[dict[str, Any]]]] = pytest.StashKey()
_gpu_rows: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-results", action="store_true", help="write bench/results/<module>.json")
    parser.addoption("--commit", metavar="HASH", help="--commit=HASH: what results name where there is no git checkout")


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
    if not session.config.getoption("--write-results"):
        return
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    for module, rows in session.config.stash[_rows].items():
        document = {"schema": 1, **provenance(), "rows": rows}
        partial = folder / f"{module}.json.partial"
        partial.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(partial, folder / f"{module}.json")


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
        bound = f"{'>=' if row['at_least'] else '<='} {row['target']:g}"
        alone = row.get("value_of_kernels", row.get("value_of_whole_call"))
        beside = "" if alone is None else f"   {'kernels' if 'value_of_kernels' in row else 'whole call'} {alone:.3f}"
        terminalreporter.write_line(
            f"{row['case']:<22} {row['value']:9.3f} {bound:<8} {'met' if row['met'] else 'MISSED':<7}{beside}"
        )


def provenance(commit: str | None = None) -> dict[str, Any]:
    """Commit, date, versions and device of this run; `commit` is what to say where there is no git checkout."""
    found = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "fairkern", "csrc", "bench/*.py")
    return {
        "commit": found or commit,
        "uncommitted_changes": bool(changes) if found else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": _cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
