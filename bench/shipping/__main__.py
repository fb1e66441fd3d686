"""`python -m bench.shipping [FAMILY …]`: a dozen families through the command line and back, at five budgets.

Without names the twelve, and bench/results/shipping.json; with names those rows again, and the others as they were.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.provenance import ROOT, versions, write_results
from bench.shipping.families import FAMILIES, TWELVE, make_folder, write_text
from bench.shipping.row import ship

RESULTS = ROOT / "bench" / "results" / "shipping.json"
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)


def main(names: Sequence[str]) -> int:
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        print(f"{unknown[0]}: no family of this name; there are {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    rows = json.loads(RESULTS.read_text())["rows"] if names and RESULTS.exists() else []
    for name in names or TWELVE:
        rows = [row for row in rows if row["family"] != name] + family(name)
        rows.sort(key=lambda row: (list(FAMILIES).index(row["family"]), row["keep_params"]))
        ships = sum("failed" not in row for row in rows)
        write_results(RESULTS, packages=versions(["transformers", "tokenizers", "accelerate"]), ships=ships, rows=rows)
        print(f"{ships} of {len(rows)}", file=sys.stderr)
    return 0


def family(name: str) -> list[dict[str, Any]]:
    """A row for every budget."""
    with tempfile.TemporaryDirectory() as place:
        folder, text = Path(place, "folder"), write_text(Path(place, "text.txt"))
        make_folder(name, folder)
        found = ship(folder, text, Path(place), BUDGETS)
    rows = [{"family": name, "keep_params": keep, **row} for keep, row in zip(BUDGETS, found, strict=True)]
    for row in rows:
        print(name, row["keep_params"], row.get("failed", "ships"), row["seconds"], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
