"""`python -m bench.zoo`: every model of the zoo as a row of docs/zoo.md and bench/results/zoo.json.

`python -m bench.zoo NAME …`, a library or a model, runs those rows again and keeps the others. Both files are written
after every row.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.provenance import ROOT, provenance, versions, write_results, write_whole
from bench.zoo.catalogue import entries
from bench.zoo.reload import Reloader
from bench.zoo.row import HEAVY, LARGE, Row, examine
from bench.zoo.uses import WIDE, Uses

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
_HEAD = f"""# The zoo

Every model below was built with random weights, traced, proven, and cut three ways: 0.3 and 0.7 of the units of every
group at random, and one unit of every group. `error` is the largest relative difference between the cut and the
masked model's output, in float64. `share` is the part of the parameters that lie on an axis that can be cut. What a
row does not show as cut is frozen, with the most frequent reasons. `sizes` says how sizes that modules hold or pass on
follow a cut: attributes known by the module's class (class) or recognised by their value in reshapes (observed),
numbers substituted in the calls of the module's own code (site), a class of equal function (replacement).
`reloads`: the model cut by 0.3 was saved, loaded in a new process into a fresh model, and gave the same outputs, bit
for bit (–: not tried, in rows from a commit before that column, or nothing to cut).

`error` is the worse one of those without and with gradients, since some modules take another path then. `trains`: a
step in train mode, and with activation checkpointing the same gradients. `workflow`: what the model has of its own
beside being called (predict, generate with its cache). `own batches`: scored and pruned by batches as the model's own
training loop goes over, nothing else said (without second moments where a group has more than {WIDE:,} units, since
the order that is solved from them takes minutes there). Each is asked of the whole model first; –: that does not do it
either, or it was not tried. `torch-pruning`: layers left alone here of which torch-pruning takes half of the outputs,
so that what is left gives what the model gives with those silenced; – where it cannot build its graph of the model.

`trace` is the processor time of tracing in float32 without the proof, the forward pass included, `proof` that of
tracing and proving in float64. Models above {LARGE // 10**6} million parameters, and those whose code does not bear
float64, are proven and cut in float32: their `error` is that of float32, and marked so. Training, own batches and
torch-pruning are not tried on models above {HEAVY // 10**6} million parameters.

"""
_COLUMNS = (
    "model", "groups", "units", "share", "error", "trace", "proof", "sizes", "reloads", "trains", "workflow",
    "own batches", "torch-pruning", "frozen",
)  # fmt: skip
_USES = {
    "trains": "train",
    "checkpoints": "train with checkpointing",
    "workflow": "run their own workflow",
    "scored": "are scored by their own batches",
    "pruned": "pruned by them",
}


def main(names: Sequence[str]) -> int:
    results = ROOT / "bench" / "results" / "zoo.json"
    rows = _kept(results) if names else {}
    known = {(entry.library, entry.name) for entry in entries()}
    rows = {place: row for place, row in rows.items() if place in known}
    with Reloader() as reloader:
        for entry in entries():
            if names and not {entry.library, entry.name} & set(names):
                continue
            row = replace(examine(entry, reloader), commit=provenance()["commit"])
            rows[entry.library, entry.name] = row
            found = f"{row.prunable} of {row.groups} groups, error {row.error:.0e}, reloads: {row.reloads}, {row.uses}"
            print(f"{entry}: {row.problem or found}", flush=True)
            gc.collect()
            ordered = [rows[e.library, e.name] for e in entries() if (e.library, e.name) in rows]
            libraries = {name: version for name, version in versions(LIBRARIES).items() if version}
            document = write_results(results, schema=2, libraries=libraries, rows=[asdict(r) for r in ordered])
            write_whole(ROOT / "docs" / "zoo.md", page(ordered, document))
    return 0 if all(row.exact and row.reloads is not False for row in rows.values()) else 1


def _kept(results: Path) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run."""
    document = json.loads(results.read_text())
    rows = [
        Row(**{"commit": document["commit"], **row, "uses": Uses(**row.get("uses", {}))}) for row in document["rows"]
    ]
    return {(row.library, row.name): row for row in rows}


def page(rows: Sequence[Row], document: dict[str, Any]) -> str:
    """The table as Markdown."""
    exact = sum(row.exact for row in rows)
    cut = sum(row.prunable > 0 for row in rows)
    libraries = ", ".join(f"{name} {version}" for name, version in document["libraries"].items())
    by_commit = Counter(row.commit[:7] for row in rows)
    commits = ", ".join(f"{count} rows from commit {commit}" for commit, count in by_commit.items())
    tried = [row.reloads for row in rows if row.reloads is not None]
    lines = [
        f"{exact} of {len(rows)} rows are exact; {cut} have something to cut; {sum(tried)} of {len(tried)} reload. "
        + "; ".join(_share_of(what, [getattr(row.uses, name) for row in rows]) for name, what in _USES.items())
        + ".",
        "",
        f"(`python -m bench.zoo`, {document['date']}, {libraries}; {commits})",
    ]
    for library in dict.fromkeys(row.library for row in rows):
        lines += [
            "",
            f"## {library}",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
        ]
        for r in (r for r in rows if r.library == library):
            if r.problem:
                lines.append(f"| {r.name} | failed {'| ' * (len(_COLUMNS) - 3)}| {_cell(r.problem)} |")
                continue
            reloads = "–" if r.reloads is None else "yes" if r.reloads else "no"
            error = f"{r.error:.0e}" if r.prunable else "–"
            error += " (float32)" if r.checked == "float32" else ""
            lines.append(
                f"| {r.name} | {r.prunable} of {r.groups} | {r.units:,} | {100 * r.share:.0f} % | {error} | "
                f"{r.trace_s:.2f} s | {_proof(r)} | {r.sizes} | {reloads} | {_trains(r.uses)} | "
                f"{_cell(r.uses.workflow) or '–'} | {_own_batches(r.uses)} | {_rival(r.rival)} | {_cell(r.frozen)} |"
            )
    return _HEAD + "\n".join(lines) + "\n"


def _share_of(what: str, outcomes: Sequence[str]) -> str:
    tried = [outcome for outcome in outcomes if outcome]
    return f"{sum(outcome == 'yes' for outcome in tried)} of {len(tried)} {what}"


def _proof(row: Row) -> str:
    return f"{row.proof_s:.1f} s" if row.proof_s else "–"


def _rival(alone: tuple[str, ...] | None) -> str:
    return "–" if alone is None else f"alone cuts {', '.join(alone)}" if alone else "nothing more"


def _trains(uses: Uses) -> str:
    if uses.trains != "yes":
        return _cell(uses.trains) or "–"
    return {"yes": "yes", "": "yes, not checkpointed"}.get(uses.checkpoints, f"checkpointed: {_cell(uses.checkpoints)}")


def _own_batches(uses: Uses) -> str:
    failed = [f"{what}: {found}" for what, found in (("score", uses.scored), ("prune", uses.pruned)) if found != "yes"]
    return ("yes" if not failed else _cell("; ".join(failed))) if uses.scored else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
