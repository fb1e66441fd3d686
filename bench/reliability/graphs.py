"""Random models of everything that a network is made of: cut is masked, and nothing else changes (`bench/graphs`)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

from bench import graphs
from bench.reliability import isolated
from bench.reliability.rows import Row, Tally

COUNT, SEED = 2000, 0

EXACT, NOTHING, WRONG = "all holds", "all holds; nothing to cut", "something does not hold"
FAULTS = (WRONG,)


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """Models of the seeds from `seed` on."""
    begun, tally, rows = time.perf_counter(), Tally(FAULTS), []
    for row in isolated.items(_rows, seed, count):
        rows.append(row)
        said = f"model {row.seed}: {row.problem} ({', '.join(row.pieces)})"
        tally.add(WRONG if row.problem else EXACT if row.prunable else NOTHING, said)
    made = tally.row("graphs", "random models", seed=seed, measured=graphs.figures(rows))
    yield replace(made, seconds=time.perf_counter() - begun)


def _rows(seed: int, count: int) -> Iterator[graphs.Row]:
    warnings.simplefilter("ignore")
    yield from graphs.run(range(seed, seed + count))
