"""`python -m bench.zoo [library]`: every model of the zoo as a row of docs/zoo.md and bench/results/zoo.json."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.conftest import ROOT, provenance
from bench.zoo.catalogue import entries
from bench.zoo.row import Row, examine

_HEAD = """# The zoo

Every model below was built with random weights, traced, proven, and cut three ways: 0.3 and 0.7 of the units of every
group at random, and one unit of every group. `error` is the largest relative difference between the cut and the
masked model's output, in float64. `share` is the part of the parameters that lie on an axis that can be cut. What a
row does not show as cut is frozen, with the most frequent reasons. `sizes` says how sizes held by modules follow a
cut: by the module's class, or observed in the reshapes that they were given.

`trace` is the time of tracing in float32 without the proof. Models above 200 million parameters are proven and cut in
float32, where their copies fit into memory: their `error` is that of float32, and marked so.

"""


def main(libraries: Sequence[str]) -> int:
    rows = []
    for library in libraries or [None]:
        for entry in entries(library):
            row = examine(entry)
            rows.append(row)
            print(
                f"{entry}: {row.problem or f'{row.prunable} of {row.groups} groups, error {row.error:.0e}'}", flush=True
            )
            gc.collect()
    document = {"schema": 1, **provenance(), "libraries": _versions(), "rows": [asdict(row) for row in rows]}
    _write(ROOT / "bench" / "results" / "zoo.json", json.dumps(document, indent=1) + "\n")
    _write(ROOT / "docs" / "zoo.md", page(rows, document))
    return 0 if all(row.exact for row in rows) else 1


def page(rows: Sequence[Row], document: dict[str, Any]) -> str:
    """The table as Markdown."""
    exact = sum(row.exact for row in rows)
    cut = sum(row.prunable > 0 for row in rows)
    libraries = ", ".join(f"{name} {version}" for name, version in document["libraries"].items())
    lines = [
        f"{exact} of {len(rows)} rows are exact; {cut} have something to cut.",
        "",
        f"(`python -m bench.zoo`, {document['date']}, {libraries}, commit {document['commit'][:7]})",
    ]
    for library in dict.fromkeys(row.library for row in rows):
        lines += ["", f"## {library}", "", "| model | groups | units | share | error | trace | sizes | frozen |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        for r in (r for r in rows if r.library == library):
            if r.problem:
                lines.append(f"| {r.name} | failed | | | | | | {_cell(r.problem)} |")
                continue
            error = f"{r.error:.0e}" if r.prunable else "–"
            error += " (float32)" if r.checked == "float32" else ""
            lines.append(
                f"| {r.name} | {r.prunable} of {r.groups} | {r.units:,} | {100 * r.share:.0f} % | {error} | "
                f"{r.trace_s:.2f} s | {r.sizes} | {_cell(r.frozen)} |"
            )
    return _HEAD + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchvision", "timm", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
