"""`python -m bench.demo`: run the demo and write bench/results/demo.json."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.provenance import ROOT, write_results
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
    write_results(ROOT / "bench" / "results" / "demo.json", rows=rows)


if __name__ == "__main__":
    main()
