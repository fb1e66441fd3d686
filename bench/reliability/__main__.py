"""`python -m bench.reliability [PART …]`: what was tried to break the product: docs/reliability.md and a results file.

Parts: those of `PARTS`; rows of parts that are not run stay as they were. `--count` and `--seed` are for one part;
`--document` only writes the document anew. Both files are written after every row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from bench.provenance import ROOT, provenance, versions, write_results, write_whole
from bench.reliability import coverage, damage, fuzz, graphs, interrupts, kills, options, page, soak, threads
from bench.reliability.rows import Row

RESULTS = ROOT / "bench" / "results" / "reliability.json"
MUTATION = RESULTS.with_name("mutation.json")  # of a benchmark of its own
PAGE = ROOT / "docs" / "reliability.md"
PACKAGES = ("torch", "numpy", "safetensors", "atheris", "coverage")
PARTS: dict[str, ModuleType] = {
    "damage": damage,
    "fuzz": fuzz,
    "kills": kills,
    "interrupts": interrupts,
    "threads": threads,
    "options": options,
    "graphs": graphs,
    "soak": soak,
    "coverage": coverage,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, help="how many times, for one part")
    parser.add_argument("--seed", type=int, help="for one part")
    parser.add_argument("--document", action="store_true", help="write the document from the results there are")
    chosen = parser.parse_args(arguments)
    if (chosen.count is not None or chosen.seed is not None) and len(chosen.parts) != 1:
        parser.error("--count and --seed go with one part")
    if chosen.document:
        write_whole(PAGE, written())
        return 0
    for name in chosen.parts or PARTS:
        new: list[Row] = []
        for row in told(PARTS[name].run, name, chosen.seed, chosen.count):
            new.append(row)
            store(name, new, [old for old in stored().get(name, ()) if old.case not in {row.case for row in new}])
        store(name, new, [])
    return 1 if any(row.wrong for found in stored().values() for row in found) else 0


def store(name: str, new: Sequence[Row], old: Sequence[Row]) -> None:
    """Both files with these rows of a part, and with those of the other parts as they were."""
    rows = {**stored(), name: [*new, *old]}
    content = [asdict(row) for part in PARTS for row in rows.get(part, ())]
    write_results(RESULTS, packages=versions(PACKAGES), rows=content)
    write_whole(PAGE, written())


def told(run: Callable[..., Iterator[Row]], name: str, seed: int | None, count: int | None) -> Iterator[Row]:
    """The rows of a part, printed as they come."""
    given = {key: value for key, value in (("seed", seed), ("count", count)) if value is not None}
    for row in run(**given):
        came = row.not_run or f"{row.count} tried, {row.wrong} wrong; {page.outcomes(row)}; {row.seconds:.0f} s"
        print(f"{name}, {row.case}: {came}", *row.examples, sep="\n    ", flush=True)
        yield replace(row, commit=provenance()["commit"])


def stored() -> dict[str, list[Row]]:
    """Rows of earlier runs, by part."""
    found: dict[str, list[Row]] = {}
    for row in _read(RESULTS)["rows"] if RESULTS.exists() else ():
        found.setdefault(row["part"], []).append(Row(**row))
    return found


def written() -> str:
    """The document, from the results there are."""
    return page.page(stored(), _read(RESULTS), _read(MUTATION) if MUTATION.exists() else None)


def _read(path: Any) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
