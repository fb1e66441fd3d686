"""`python -m bench.gpu_rehearsal`: what `bench/gpu/run.sh` does on a GPU, done on the CPU, small, by the same clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu.suite import ENDED, SECONDS
from bench.provenance import ROOT, write_results

RESULTS = ROOT / "bench" / "results" / "gpu_rehearsal.json"
KEPT = ("step", "predicted_s", "budget_s", "status", "seconds", "said", "wrong")


def rehearsed(folder: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """What the script left: how it ended, its steps, and its rows' names with how long each took."""
    command = ["bash", str(ROOT / "bench" / "gpu" / "run.sh"), str(folder), "--rehearse", "--seconds", str(seconds)]
    seen = {**os.environ, "PYTHON": sys.executable}  # whatever else is called python3 here
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=seen)
    if done.returncode not in ENDED or not (folder / "run.json").exists():
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    print(done.stdout, file=sys.stderr)
    steps = json.loads((folder / "run.json").read_text())["rows"]
    took: Mapping[str, float] = next(row.get("took", {}) for row in steps if row["step"] == "rows")
    return {
        "ended": ENDED[done.returncode],
        "seconds": seconds,
        "rows": [{key: row[key] for key in KEPT if key in row} for row in steps],
        "rows_took": dict(took),
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = rehearsed(Path(folder))
    write_results(RESULTS, **found)
    return int(found["ended"] != ENDED[0])


if __name__ == "__main__":
    sys.exit(main())
