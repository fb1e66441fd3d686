"""`python -m bench.demo`: run the demo and write bench/results/demo.json."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from bench.conftest import ROOT, provenance
from fairkern.demo.run import TUNING_EPOCHS, Options, run


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(Options(out=Path(folder)))
    rows = [
        {
            "case": name,
            "before": dict(outcome.report.before),
            "after": dict(outcome.report.after),
            "tuning_epochs": TUNING_EPOCHS,
            "stages_s": dict(outcome.report.stages),
            "masked_accuracy": outcome.masked_accuracy,
            "cut_against_masked": outcome.difference,
            "reload_equal": outcome.reload_equal,
        }
        for name, outcome in outcomes.items()
    ]
    path = ROOT / "bench" / "results" / "demo.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({"schema": 1, **provenance(), "rows": rows}, indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
