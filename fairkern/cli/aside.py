"""Commands beside the stages: the demo, what runs here, files of others, completion."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fairkern as fk
from fairkern.cli import completion as shells
from fairkern.cli.commands import PLAN, REPORT, report_facts
from fairkern.cli.files import existing, there, writable, written
from fairkern.cli.output import Outcome, rendered

FAILED = 1


def demo(arguments: argparse.Namespace) -> Outcome:
    from fairkern.demo import run  # not every command needs it

    run.require()
    console = Console(quiet=arguments.quiet or arguments.json)
    models = tuple(run.BUILDERS) if arguments.model == "both" else (arguments.model,)
    options = run.Options(
        out=writable(arguments.out, folder=True),
        models=models,
        keep_params=arguments.keep_params,
        seed=arguments.seed,
        quiet=arguments.quiet,
        epochs=arguments.epochs,
    )
    outcomes = run.run(options, console)
    run.show(outcomes, options, console)
    exact = all(outcome.exact for outcome in outcomes.values())
    facts = {name: {"exact": done.exact, **report_facts(done.report)} for name, done in outcomes.items()}
    return Outcome({"out": options.out, "models": facts}, code=0 if exact else FAILED)


def info(arguments: argparse.Namespace) -> Outcome:
    facts = {"fairkern": fk.__version__, **fk.info()}
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    operators = facts.get("operators", {})
    for name, value in facts.items():
        if name != "operators":
            _add_fact(table, name.replace("_", " "), value)
    for operator, backends in operators.items():
        for backend, why_not in backends.items():
            _add_fact(table, f"{operator}: {backend}", f"no: {why_not}" if why_not else "runs")
    return Outcome(facts, shown=rendered(table))


def _add_fact(table: Table, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is not None:
                _add_fact(table, f"{name}: {key}".replace("_", " "), inner)
    elif isinstance(value, (list, tuple)):
        table.add_row(Text(name), Text(", ".join(map(str, value)) or "none"))
    else:
        table.add_row(Text(name), Text(str(value)))


def export(arguments: argparse.Namespace) -> Outcome:
    if there(arguments.folder).is_file():
        raise fk.InputError(f"{arguments.folder} is a file; name the folder that holds it")
    out = writable(arguments.gguf)
    with written(out):
        done = fk.hf.export_gguf(arguments.folder, out, arguments.type, vocab=arguments.vocab)
    goes_in = "text" if done.vocabulary else "token ids (without a vocabulary)"
    layers = f"{len(done.widths)} layers of the architecture {done.architecture}"
    return Outcome(asdict(done), said=(f"{layers}, {done.type}, {goes_in} in; written to {done.path}",))


def compact(arguments: argparse.Namespace) -> Outcome:
    plan = fk.Plan.load(existing(arguments.plan, PLAN))
    done = fk.compact_checkpoint(there(arguments.checkpoint), plan, arguments.out)
    said = [f"{done.before:,} → {done.after:,} bytes of weights; written to {arguments.out}"]
    beside = arguments.plan.with_name(REPORT)
    how = fk.Report.load(beside).choices.get("compensation") if beside.is_file() else None
    if how not in (None, "none"):
        said.append(
            f"nothing was folded in: {beside} tells of the compensation {how!r}, which takes data; the plan has none "
            "of it"
        )
    if done.ignored:
        said.append(f"{len(done.ignored)} tensors have no place in the model and were left out: {done.ignored[0]}, …")
    served = plan.result.get("serves", {}).get("hf", "yes")
    if served != "yes":
        said.append(f"from_pretrained does not load it ({served}); fairkern.apply makes a model of the plan that does")
    return Outcome({"out": arguments.out, **done._asdict()}, said=tuple(said))


def completion(arguments: argparse.Namespace) -> Outcome:
    script = shells.script(arguments.shell, arguments.top)
    return Outcome({"shell": arguments.shell, "script": script}, shown=script)
