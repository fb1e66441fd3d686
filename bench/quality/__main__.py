"""`python -m bench.quality [--models …] [--seeds …] [--quick]`: the grid, bench/results/quality.*, docs/quality.md.

Trained weights are kept in bench/quality/.cache; rows of other models and seeds stay in the results file, so a run can
be cut into several; with `--methods` or `--compensations` those of other recipes stay too. `--document` only writes the
document anew, `--agreement` only compares the paper's recipe with the paper's package before.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench.provenance import ROOT, provenance, versions, write_results
from bench.quality import agreement, document, rows, train
from bench.quality.catalogue import ENTRIES
from bench.quality.grid import COMPENSATIONS, KEEPS, Grid, run
from bench.quality.methods import METHODS

ROWS = ROOT / "bench" / "results" / "quality.csv"
NOTE = ROOT / "bench" / "results" / "quality.json"
AGREEMENT = ROOT / "bench" / "results" / "quality_agreement.json"
QUICK = Grid(keeps=(0.5, 0.2), methods=METHODS[:2], compensations=("least_squares", "sequential"), rivals=False)
PACKAGES = ("torch", "numpy", "scikit-learn", "matplotlib", "transformers", "torch-pruning", "network-pruner")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), metavar="MODEL")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--methods", nargs="+", choices=[m.name for m in METHODS], metavar="METHOD", help="fewer of them"
    )
    compensations = {"choices": COMPENSATIONS, "metavar": "COMPENSATION", "help": "fewer of them"}
    parser.add_argument("--compensations", nargs="+", **compensations)
    parser.add_argument("--keeps", nargs="+", type=float, default=list(KEEPS), help="other budgets")
    parser.add_argument("--quick", action="store_true", help="two methods, few budgets, printed and not written")
    parser.add_argument("--document", action="store_true", help="write the document from the results there are")
    parser.add_argument("--agreement", action="store_true", help="only the paper's recipe against the paper's package")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    some = [m for m in METHODS if m.name in (chosen.methods or [m.name])]
    partly = bool(chosen.methods or chosen.compensations)
    grid = Grid(chosen.keeps, some, chosen.compensations or COMPENSATIONS, rivals=not partly)
    if not (chosen.document or chosen.agreement):
        for name in chosen.models:
            for seed in chosen.seeds:
                started = time.perf_counter()
                outcome = run(ENTRIES[name], seed, QUICK if chosen.quick else grid)
                print(
                    f"{name}, seed {seed}: {len(outcome.rows)} cuts, {time.perf_counter() - started:.0f} s", flush=True
                )
                if chosen.quick:
                    for row in outcome.rows:
                        what = f"{row.method:<32} {row.compensation:<26} {row.keep:5.0%}"
                        print(f"  {what} {row.after:8.4f} of {row.before:.4f}")
                    continue
                with _alone():
                    rows.write(ROWS, rows.merged(rows.read(ROWS), outcome.rows, partly=partly))
                    if partly:
                        asked = ", ".join([*(chosen.methods or []), *(chosen.compensations or [])])
                        _note(name, seed, asked)
                    else:
                        _note(name, seed, "", outcome.left_out)
    if not (chosen.document or chosen.quick or partly):
        write_results(AGREEMENT, packages=versions(PACKAGES), rows=agreement.rows())
    if not chosen.quick:
        document.write(rows.read(ROWS), json.loads(NOTE.read_text()), json.loads(AGREEMENT.read_text()), ROOT / "docs")
    return 0


@contextmanager
def _alone() -> Iterator[None]:
    """Runs of other models may write to the same files."""
    train.CACHE.mkdir(exist_ok=True)
    with (train.CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(model: str, seed: int, asked: str, left_out: list[dict[str, Any]] | None = None) -> None:
    """When, with which versions, and what was left out: beside the rows. `asked`: which methods and compensations,
    where not all; what was left out before is then still so."""
    known = json.loads(NOTE.read_text()) if NOTE.exists() else {"runs": {}, "left_out": []}
    run = f"{model}, seed {seed}"
    kept = known["left_out"]
    if left_out is not None:
        kept = [*(item for item in kept if (item["model"], item["seed"]) != (model, seed)), *left_out]
    made = {k: provenance()[k] for k in ("commit", "date")}
    runs = {**known["runs"], f"{run}: {asked}" if asked else run: made}
    write_results(NOTE, packages=versions(PACKAGES), runs=runs, left_out=kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
