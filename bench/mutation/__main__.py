"""`python -m bench.mutation`: of small changes to the code that decides, how many a test notices.

For each room a sample of its mutants, drawn with a seed; writes bench/results/mutation.json. Every mutant is given the
tests of its room that run its line. An own runner and not mutmut, which changes no decorated function (here: every
rule), and not cosmic-ray, which starts an interpreter for every mutant and draws no sample.

`--rooms` runs some rooms again and keeps the rows of the others; the file is written after every room.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.mutation.children import judged, prepare
from bench.mutation.equivalent import EQUIVALENT
from bench.mutation.mutants import Mutant, mutants
from bench.provenance import ROOT, provenance, versions, write_results

RESULTS = ROOT / "bench" / "results" / "mutation.json"
ROOMS = {  # what is changed, and the tests that should notice: the quick ones of the room, others could notice more
    "allocate": ("fairkern/allocate/*.py", ("tests/allocate",)),
    "plans": ("fairkern/plans/*.py", ("tests/plans", "tests/allocate/test_budget.py", "tests/axes/test_kinds.py")),
    "axes/rules": (
        "fairkern/axes/rules/*.py",
        tuple(
            f"tests/axes/test_{name}.py"
            for name in (
                "rules", "rules_of_places", "rules_of_sums", "rules_of_values", "rules_of_zeros", "attention",
                "computed", "experts", "grouped", "indexing", "layers", "losses", "pointwise", "products", "recurrent",
                "reductions", "transforms", "views", "vision_operators",
            )
        ),
    ),
    "references": (
        "fairkern/ops/*/reference.py",
        tuple(
            f"tests/ops/test_{name}.py"
            for name in ("references", "eliminate", "gather", "gram", "project", "taylor", "tod", "wasserstein_1d")
        ),
    ),
}  # fmt: skip
TARGET = 0.85
SEED = 2  # of a sample that no test was written for
LEVEL = 1.96  # standard deviations: 95 % of a normal distribution


def main(arguments: Sequence[str]) -> int:
    options = _parsed(arguments)
    torch.set_num_threads(1)
    prepare()
    rows = {} if set(options.rooms) == set(ROOMS) else _kept()
    for room in options.rooms:
        pattern, tests = ROOMS[room]
        everything = in_room(pattern)
        chosen = sample(everything, options.sample, options.seed)
        begin = time.perf_counter()
        fates = judged(ROOT, tests, [mutant for mutant in chosen if mutant.name not in EQUIVALENT], tell)
        fates = {mutant: fates.get(mutant, "equivalent") for mutant in chosen}
        made = row(room, len(everything), fates)
        run = {"seed": options.seed, "seconds": round(time.perf_counter() - begin), "commit": provenance()["commit"]}
        rows[room] = {**made, **run, "survivors": survivors(fates)}
        print({**made, **run}, file=sys.stderr, flush=True)
        if not options.dry:
            packages = versions(("torch", "numpy", "pytest", "hypothesis", "coverage"))
            ordered = [rows[room] for room in ROOMS if room in rows]
            write_results(RESULTS, target=TARGET, versions=packages, rows=ordered)
    return 0 if all(row["killed_share"] >= TARGET for row in rows.values()) else 1


def _kept() -> dict[str, dict[str, Any]]:
    """Rows of the file as it is."""
    return {row["room"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--sample", type=int, default=120, help="mutants of each room")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS), help="of others, rows are kept")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    return parser.parse_args(arguments)


def in_room(pattern: str) -> list[Mutant]:
    paths = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]
    return [mutant for path in paths for mutant in mutants(ROOT, path)]


def sample(everything: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Drawn by the seed, in the order of the sources."""
    drawn = random.Random(seed).sample(range(len(everything)), min(count, len(everything)))
    return [everything[k] for k in sorted(drawn)]


def tell(mutant: Mutant, fate: str, tests: int) -> None:
    if fate != "killed":
        print(f"{fate} ({tests} tests), line {mutant.line}: {mutant.name}", file=sys.stderr, flush=True)


def row(room: str, population: int, fates: Mapping[Mutant, str]) -> dict[str, Any]:
    """`killed_share` is of the sample but for equivalent mutants; with it the 95 % interval for the whole room."""
    count = Counter(fates.values())
    judged_ones = len(fates) - count["equivalent"]
    killed = count["killed"] + count["too long"]
    low, high = interval(killed, judged_ones, population)
    return {
        "room": room,
        "mutants": population,
        "sample": len(fates),
        "equivalent": count["equivalent"],
        "killed": killed,
        "of_these_by_time": count["too long"],
        "killed_share": round(killed / judged_ones, 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def survivors(fates: Mapping[Mutant, str]) -> list[str]:
    return [f"{mutant.name} (line {mutant.line})" for mutant, fate in fates.items() if fate == "survived"]


def interval(killed: int, sample: int, population: int) -> tuple[float, float]:
    """Wilson's interval, narrowed by what the sample is of the whole (finite population correction)."""
    share = killed / sample
    z = LEVEL * math.sqrt(max(population - sample, 0) / max(population - 1, 1))
    middle = (share + z * z / (2 * sample)) / (1 + z * z / sample)
    half = z / (1 + z * z / sample) * math.sqrt(share * (1 - share) / sample + z * z / (4 * sample * sample))
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
