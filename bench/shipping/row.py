"""One family at some budgets: pruned by the command line in a process, opened by transformers in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.provenance import ROOT

LOGITS = 1e-5
_OPTIONS = ("--sequence", "64", "--samples", "32", "--quiet")


def ship(folder: Path, text: Path, place: Path, budgets: Sequence[float], *options: str) -> list[dict[str, Any]]:
    """Per budget what came of it: figures of the folder that was written, or `failed` with what was said."""
    outs = [place / f"out-{keep}" for keep in budgets]
    asked = ["--hf", folder, "--data", text, *_OPTIONS, *options]
    pruned = _lines("bench.shipping.remembered", [*outs, "--", *asked], len(outs))
    written = [out for out, found in zip(outs, pruned, strict=True) if found.get("code") == 0]
    opened = dict(zip(written, _lines("bench.shipping.opened", written, len(written)), strict=True))
    return [
        row_of(out, keep, found, opened.get(out, {})) for out, keep, found in zip(outs, budgets, pruned, strict=True)
    ]


def row_of(out: Path, keep: float, pruned: dict[str, Any], opened: dict[str, Any]) -> dict[str, Any]:
    seconds = {"seconds": pruned.get("seconds")}
    if pruned.get("code") != 0:
        return {"failed": (pruned.get("said") or "it ended early").splitlines()[-1], **seconds}
    if "logits" not in opened:
        return {"failed": f"transformers does not open it: {opened.get('said')}", **seconds}
    report = json.loads((out / "report.json").read_text())
    plan = json.loads((out / "plan.json").read_text())["result"]
    before, after = report["before"], report["after"]
    planned = plan["params_after"] / before["params"]
    return {
        **opened,
        "planned": planned,
        "kept": after["params"] / before["params"],  # with biases that compensation added
        "perplexity": [before["perplexity"], after["perplexity"]],
        "serves": plan["serves"],
        **seconds,
        **failure(opened, planned, keep),
    }


def failure(found: dict[str, Any], planned: float, keep: float) -> dict[str, str]:
    """What does not hold of all that should."""
    wrong = [
        *(f"{kind} {found[kind][0]}" for kind in ("missing", "unexpected", "mismatched") if found[kind]),
        *([f"logits differ by {found['logits']:.1e}"] if not found["logits"] <= LOGITS else []),
        *(f"{found[c]} tokens alike, {c} cache" for c in ("dynamic", "static") if found[c] < found["tokens"]),
        *([f"{planned:.3f} of the parameters are planned"] if planned > keep else []),
    ]
    return {"failed": "; ".join(wrong)} if wrong else {}


def _lines(module: str, arguments: Sequence[object], expected: int) -> list[dict[str, Any]]:
    """What a process says, a line of JSON each; for those that are missing the last line of standard error."""
    if not expected:
        return []
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    lost = {"said": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return [*found, *[lost] * (expected - len(found))]
