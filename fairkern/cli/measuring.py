"""Commands that measure: reports, tables of latency, comparisons of methods."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fairkern as fk
from fairkern.cli.commands import PLAN, REPORT, SCORES, WEIGHTS, evaluate, free_options, loss, placed, report_facts
from fairkern.cli.files import apart, existing, read_by, there, writable, written
from fairkern.cli.given import device, named, on, signal
from fairkern.cli.output import Outcome
from fairkern.cli.streams import err

COMPENSATED = ("compensation", "biases", "compensated", "not_compensated", "through_zero", "divergence")


def report(arguments: argparse.Namespace) -> Outcome:
    """Print a report that was saved, or measure anew: by what is named, and by what is there."""
    subject, rest = arguments.subject, arguments.rest
    files = {name: given for name in ("out", "html", "picture") if (given := getattr(arguments, name)) is not None}
    apart(*files.values())
    for path in files.values():
        writable(path, read=read_by(arguments))
    if ":" in subject and not os.path.exists(subject):
        if arguments.picture and not arguments.scores and not (rest and (Path(rest[0]) / SCORES).is_file()):
            raise fk.InputError("--picture shows the scores as well: name their file with --scores")
        made, said = _of_model(arguments)
    elif there(Path(subject)).is_dir() and (rest or arguments.model or arguments.evaluate):
        made, said = _of_folder(arguments)
    else:
        made, said = _saved(arguments), ""
    if "picture" in files and made.scores is None:
        raise fk.InputError("--picture shows the scores as well: name their file with --scores")
    if "picture" in files and made.plan is None:
        raise fk.InputError(f"--picture shows the plan as well, and there is no {PLAN} beside {subject}")
    for name, path in files.items():
        with written(path):
            if name == "out":
                made.save(path)
            elif name == "html":
                made.save_html(path)
            else:
                assert made.scores is not None
                assert made.plan is not None
                fk.picture(made.scores, made.plan, path)
    where = [f"written to {path}" for path in files.values()]
    return Outcome({**files, **report_facts(made)}, shown=made.table(), said=(*([said] if said else []), *where))


def _saved(arguments: argparse.Namespace) -> fk.Report:
    """A report as it was written, with the plan and the scores that lie beside it."""
    path = Path(arguments.subject)
    folder = path if path.is_dir() else path.parent
    if arguments.rest or arguments.model or arguments.evaluate:
        raise fk.InputError(f"{path} is a file, of a report to print; what is measured is a MODEL, or a folder")
    if arguments.out:
        raise fk.InputError(f"--out is for what is measured; {path} is printed as it was saved")
    if path.is_dir() and not (path / REPORT).is_file():
        raise fk.InputError(f"{path} holds no {REPORT}; to measure what is in it, name INPUTS behind it")
    made = fk.Report.load(path / REPORT if path.is_dir() else path)
    plan = fk.Plan.load(folder / PLAN) if (folder / PLAN).is_file() else None
    return replace(made, plan=plan, scores=_scores(arguments, folder, made.choices))


def _of_model(arguments: argparse.Namespace) -> tuple[fk.Report, str]:
    """A model beside what a plan leaves of it, or beside what was saved with one."""
    if len(arguments.rest) != 2:
        raise fk.InputError(f"of the model {arguments.subject} also name PLAN and INPUTS, in this order")
    if arguments.model:
        raise fk.InputError(f"--model names the model of a folder, and {arguments.subject} is one itself")
    place = there(Path(arguments.rest[0]))
    folder = place if place.is_dir() else place.parent
    plan = fk.Plan.load(place if place.is_file() else existing(place / PLAN, PLAN))
    model, inputs = placed(arguments, arguments.subject, arguments.rest[1])
    if place.is_dir():
        return _measured(arguments, model, fk.load_pruned(model, place), plan, inputs, folder), ""
    bare = f"measured is the model cut by {place} alone"
    saved = f"; for the weights that were saved with it name the folder: {folder}" if _holds_weights(folder) else ""
    return _measured(arguments, model, fk.apply(model, plan), plan, inputs, None), bare + saved


def _of_folder(arguments: argparse.Namespace) -> tuple[fk.Report, str]:
    """What was saved in a folder, beside the model that it was made of, where that is named."""
    folder = Path(arguments.subject)
    if len(arguments.rest) != 1:
        raise fk.InputError(f"of the folder {folder} also name INPUTS, what it is timed on")
    plan = fk.Plan.load(existing(folder / PLAN, PLAN))
    if arguments.model:
        model, inputs = placed(arguments, arguments.model, arguments.rest[0])
        return _measured(arguments, model, fk.load_pruned(model, folder), plan, inputs, folder), ""
    inputs = placed(arguments, arguments.rest[0])
    small = on(device(arguments.device), fk.load_pruned(folder, trust=arguments.trust))
    said = "measured is what was saved; for the unpruned model beside it name that with --model"
    return _measured(arguments, None, small, plan, inputs, folder), said


def _measured(
    arguments: argparse.Namespace, model: Any, small: Any, plan: fk.Plan, inputs: Any, folder: Path | None
) -> fk.Report:
    """`model`: None where what was saved is measured alone. `folder`: that says what was folded in."""
    known = fk.Report.load(folder / REPORT).choices if folder and (folder / REPORT).is_file() else {}
    scores, measure = _scores(arguments, folder, known), evaluate(arguments)
    if measure is not None:
        _told(arguments, "evaluating")
    before, after = (fk.measured(measure, net) if measure and net is not None else {} for net in (model, small))
    timing = None
    _told(arguments, "measuring latency")
    if model is None:
        after = {"latency_ms": fk.latency(small, inputs), **after}
    else:
        timing = fk.compare_latency(model, small, inputs)
    made = fk.summarise(plan, scores=scores, before=before, after=after, timing=timing, small=small)
    done = {name: value for name, value in known.items() if name in COMPENSATED}
    return replace(made, choices={**made.choices, **done}, scores=scores)


def _scores(arguments: argparse.Namespace, folder: Path | None, choices: Mapping[str, Any]) -> fk.Scores | None:
    """Those that are named, else those that lie in the folder; of a plan that was made in steps these are others'."""
    if arguments.scores:
        return fk.Scores.load(existing(arguments.scores, SCORES))
    beside = folder is not None and (folder / SCORES).is_file() and "steps" not in choices
    return fk.Scores.load(folder / SCORES) if folder is not None and beside else None


def _told(arguments: argparse.Namespace, stage: str) -> None:
    if not arguments.quiet:
        err(f"{stage} …")


def _holds_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file()


def sweep(arguments: argparse.Namespace) -> Outcome:
    files = {name: given for name in ("out", "picture") if (given := getattr(arguments, name)) is not None}
    apart(*files.values())
    for path in files.values():
        writable(path, read=read_by(arguments))
    options = free_options(arguments) | {"seeds": arguments.seeds, "by": f"keep_{arguments.by}"}
    if arguments.compensate is not None:
        options["compensate"] = arguments.compensate
    methods = [signal(name) for name in arguments.methods]
    model, loader = placed(arguments, arguments.model), named(arguments.loader)
    compared = {"budgets": arguments.budgets, "methods": methods, "evaluate": evaluate(arguments)}
    found = fk.sweep(model, loader, loss(arguments), **compared, **options)
    for name, path in files.items():
        with written(path):
            (found.to_csv if name == "out" else found.picture)(path)
    said = tuple(f"written to {path}" for path in files.values())
    return Outcome({**files, **vars(found)}, shown=found.table(), said=said)


def latency(arguments: argparse.Namespace) -> Outcome:
    out = writable(arguments.out, read=read_by(arguments))
    model, inputs = placed(arguments, arguments.model, arguments.inputs)
    units = fk.trace(model, inputs)
    with written(out):
        table = fk.latency_table(model, units, inputs, cache=out, round_to=arguments.round_to, seed=arguments.seed)
    facts = {"out": out, "whole_ms": table.whole, "error": table.error, "layers": len(table.layers), **table.key}
    said = f"{len(table.layers)} layers, {table.whole:.4g} ms in all; cuts are told to {table.error:.1%}"
    return Outcome(facts, said=(f"{said}; written to {out}",))
