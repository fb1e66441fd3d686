"""Coverage-guided fuzzing: readers of files (atheris) and native entry points (libFuzzer with sanitizers)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.provenance import ROOT
from bench.reliability import native_fuzz
from bench.reliability.rows import Row, Tally
from bench.reliability.subjects import KINDS

COUNT, SEED = 1_200_000, 0
NATIVE = 0.9  # share of the executions
READ, FOUND = "read or ArtefactError", native_fuzz.FOUND
MEMORY = 2048  # megabytes: of a process with torch in it; the files are below 100 kB


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """A row per reader and per native operator, `count` executions in all."""
    native = round(count * NATIVE)
    yield from _readers(seed, count - native)
    with tempfile.TemporaryDirectory() as folder:
        yield from native_fuzz.run(seed, native, Path(folder))


def _readers(seed: int, count: int) -> Iterator[Row]:
    if importlib.util.find_spec("atheris") is None:
        yield Row(
            "fuzz",
            "readers",
            not_run="atheris is not installed (pip install atheris; there are builds up to CPython 3.13)",
        )
        return
    for kind in KINDS:
        yield _reader(kind, seed, count // len(KINDS))


def _reader(kind: str, seed: int, count: int) -> Row:
    begun = time.perf_counter()
    options = [f"-runs={count}", f"-seed={seed + 1}", "-max_len=65536", "-len_control=0", "-timeout=30"]
    options += [f"-rss_limit_mb={MEMORY}", f"-malloc_limit_mb={MEMORY // 4}", "-print_final_stats=1"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "bench.reliability.readers", kind, *options, f"-artifact_prefix={folder}/"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        executed, found = native_fuzz.outcome(done.stderr, done.returncode)
        if found:
            raised = re.findall(r"^\w*(?:Error|Exception|Interrupt)\b.*$", done.stdout + done.stderr, re.MULTILINE)
            found = " | ".join([*raised[:1], found])[:600]
    tally = Tally((FOUND,))
    tally.outcomes[READ] = executed
    if found:
        tally.add(FOUND, found)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    row = tally.row("fuzz", f"reader: {kind}", seed=seed, measured={"edges": int(edges[-1]) if edges else 0})
    return replace(row, count=executed, seconds=time.perf_counter() - begun)
