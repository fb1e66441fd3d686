"""Which lines of `fairkern/` the ordinary tests run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.provenance import ROOT
from bench.reliability.rows import Row

COUNT, SEED = 1, None  # runs of the tests; there is nothing to draw
BOUND = 0.92
ON_A_GPU = (
    "*/triton_kernel.py",
    "*/ops/gather/cuda.py",
    "*/ops/_cuda.py",
)  # Triton compiles the bodies of kernels itself
BELOW, ENOUGH = f"below {BOUND:.0%}", f"{BOUND:.0%} or more"


def run(seed: int | None = SEED, count: int = COUNT, tests: tuple[str, ...] = ("tests",)) -> Iterator[Row]:
    if importlib.util.find_spec("coverage") is None:
        yield Row("coverage", "lines of fairkern/", not_run="coverage is not installed (pip install coverage)")
        return
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        settings = Path(folder) / "settings"
        settings.write_text("[run]\nsource = fairkern\nconcurrency = thread\n")
        words = [sys.executable, "-m", "coverage"]
        own = [f"--rcfile={settings}", f"--data-file={data}"]
        done = subprocess.run(
            [*words, "run", *own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        last = (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
        if done.returncode not in (0, 1):
            yield Row("coverage", "lines of fairkern/", not_run=f"pytest: {last}")
            return
        omit = f"--omit={','.join(ON_A_GPU)}"
        subprocess.run([*words, "json", *own, omit, "-o", str(report)], cwd=ROOT, capture_output=True, check=True)
        found = json.loads(report.read_text())
    totals = found["totals"]
    share = totals["covered_lines"] / totals["num_statements"]
    outcome = ENOUGH if share >= BOUND else BELOW
    yield Row(
        "coverage",
        "lines of fairkern/",
        count=totals["num_statements"],
        outcomes={outcome: 1},
        faults=(BELOW,),
        examples=(f"{share:.2%}",) if share < BOUND else (),
        measured={"covered": totals["covered_lines"], "share": share, "tests": last, "not_run": _missing(found)},
        seconds=time.perf_counter() - begun,
    )


def _missing(report: Mapping[str, Any]) -> dict[str, str]:
    """Lines by file, neighbours together."""
    return {
        path: ", ".join(_spans(entry["missing_lines"]))
        for path, entry in report["files"].items()
        if entry["missing_lines"]
    }


def _spans(lines: list[int]) -> Iterator[str]:
    for _, together in groupby(enumerate(lines), lambda pair: pair[1] - pair[0]):
        numbers = [line for _, line in together]
        yield str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
