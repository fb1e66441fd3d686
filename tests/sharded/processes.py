"""Several processes that run the same cases, started once for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds


@cache
def said(module: str, size: int) -> list[dict[str, str]]:
    """By rank and case, what it failed with; empty where it did not."""
    with TemporaryDirectory() as folder:
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.sharded.rank", module, str(rank), str(size), folder],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            printed = [run.communicate(timeout=LIMIT)[0] for run in runs]
        finally:
            for run in runs:
                run.kill()
        written = [Path(folder) / f"said{rank}.json" for rank in range(size)]
        return [
            json.loads(path.read_text()) if path.exists() else {"": f"it ended without a word:\n{out[-3000:]}"}
            for path, out in zip(written, printed, strict=True)
        ]


def check(module: str, size: int, case: str) -> None:
    for rank, found in enumerate(said(module, size)):
        failed = found.get(case, found.get("", ""))
        assert failed == "", f"rank {rank} of {size}:\n{failed}"
