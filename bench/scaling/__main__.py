"""`python -m bench.scaling`: what scoring takes as models and data grow; bench/results/scaling.json, docs/scaling.md.

`--document` only writes the document anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.provenance import ROOT, write_results
from bench.scaling import document

RESULTS = ROOT / "bench" / "results" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rates", {"kind": "rates"}),
    *(("parameters", {"kind": "decoder", "layers": n, "width": 512, "tokens": 2048}) for n in (2, 4, 8)),
    *(("tokens", {"kind": "decoder", "layers": 4, "width": 512, "tokens": n}) for n in (1024, 4096)),
    *(("width", {"kind": "order", "units": n}) for n in (512, 1024, 2048, 4096)),
    *(("classes", {"kind": "classes", "count": n}) for n in (10, 100, 1000)),
    *(("ranks", {"kind": "decoder", "layers": 4, "width": 512, "tokens": 4096, "ranks": n}) for n in (2,)),
)


def main(arguments: Sequence[str]) -> int:
    if list(arguments) != ["--document"]:
        rows = []
        for over, case in CASES:
            rows.append({"over": over, **case, **measured(case)})
            print(rows[-1], flush=True)
        write_results(RESULTS, rows=rows)
    document.write(json.loads(RESULTS.read_text()), PAGE)
    return 0


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """What one case says of itself, from a process of its own."""
    several = [
        "torch.distributed.run",
        "--standalone",
        "--local-ranks-filter=0",
        f"--nproc-per-node={case.get('ranks')}",
        "-m",
    ]
    command = [
        sys.executable,
        "-m",
        *(several if case.get("ranks", 1) > 1 else []),
        "bench.scaling.one",
        json.dumps(case),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
