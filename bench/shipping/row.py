"""One family at one budget: pruned by the command line in a process, opened by transformers in another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.provenance import ROOT

LOGITS = 1e-5
_OPTIONS = ("--sequence", "64", "--samples", "32", "--quiet")


def ship(folder: Path, text: Path, out: Path, keep: float, *options: str) -> dict[str, Any]:
    """What came of it: figures of the folder that was written, or `failed` with what was said."""
    asked = ["--hf", str(folder), "--data", str(text), "--keep-params", str(keep), "-o", str(out), *_OPTIONS, *options]
    remembered = out.with_suffix(".pt")
    started = time.perf_counter()
    said, code = _run("bench.shipping.remembered", str(remembered), "prune", *asked)
    seconds = time.perf_counter() - started
    if code != 0:
        return {"failed": said.strip().splitlines()[-1] if said.strip() else f"exit code {code}", "seconds": seconds}
    report = json.loads((out / "report.json").read_text())
    shown, code = _run("bench.shipping.opened", str(out), str(remembered))
    if code != 0:
        return {"failed": shown.strip().splitlines()[-1], "seconds": seconds}
    found = json.loads(shown.strip().splitlines()[-1])
    before, after = report["before"], report["after"]
    return {
        **found,
        "kept": after["params"] / before["params"],
        "perplexity": [before["perplexity"], after["perplexity"]],
        "compensation": report["choices"]["compensation"],
        "seconds": seconds,
        **_failure(found, after["params"] / before["params"], keep),
    }


def _failure(found: dict[str, Any], kept: float, keep: float) -> dict[str, str]:
    """What does not hold of all that should."""
    wrong = [
        *(f"{kind} {found[kind][0]}" for kind in ("missing", "unexpected", "mismatched") if found[kind]),
        *([f"logits differ by {found['logits']:.1e}"] if not found["logits"] <= LOGITS else []),
        *(
            f"{found[c]} of {found['tokens']} tokens, {c} cache"
            for c in ("dynamic", "static")
            if found[c] < found["tokens"]
        ),
        *([f"{kept:.3f} of the parameters are left"] if kept > keep else []),
    ]
    return {"failed": "; ".join(wrong)} if wrong else {}


def _run(module: str, *arguments: str) -> tuple[str, int]:
    """Standard output where it ends well, else what went to standard error."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (done.stdout if done.returncode == 0 else done.stderr), done.returncode
