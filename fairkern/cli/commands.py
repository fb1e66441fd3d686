"""One function a command: arguments in, exit code out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fairkern as fk
from fairkern.cli.folders import check_given, prune_folder
from fairkern.cli.given import existing, named, writable

FAILED = 1
SCORES, PLAN, REPORT = "scores.safetensors", "plan.json", "report.json"
BIASES = {"auto": "auto", "yes": True, "no": False}


def demo(arguments: argparse.Namespace) -> int:
    from fairkern.demo import run  # not every command needs it

    run.require()
    console = Console(quiet=arguments.quiet)
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
    return 0 if all(outcome.exact for outcome in outcomes.values()) else FAILED


def info(arguments: argparse.Namespace) -> int:
    facts = {"fairkern": version("fairkern"), **fk.info()}
    if arguments.json:
        print(json.dumps(facts, indent=1, default=str))  # noqa: T201
        return 0
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    operators = facts.pop("operators", {})
    for name, value in facts.items():
        _add_fact(table, name.replace("_", " "), value)
    for operator, backends in operators.items():
        for backend, why_not in backends.items():
            _add_fact(table, f"{operator}: {backend}", f"no: {why_not}" if why_not else "runs")
    Console(highlight=False).print(table)
    return 0


def _add_fact(table: Table, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is not None:
                _add_fact(table, f"{name}: {key}".replace("_", " "), inner)
    elif isinstance(value, (list, tuple)):
        table.add_row(Text(name), Text(", ".join(map(str, value)) or "none"))
    else:
        table.add_row(Text(name), Text(str(value)))


def trace(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in ("unused", "depth", "verify", "seed", "time_limit")}
    units = fk.trace(named(arguments.model), named(arguments.inputs), **options, **_more(arguments))
    print(units.explain())  # noqa: T201
    return 0


def score(arguments: argparse.Namespace) -> int:
    team = arguments.team
    out = team.told("where to write", lambda: writable(arguments.out))
    options = _score_options(arguments) | {"ranks": team}
    scores = fk.score(named(arguments.model), named(arguments.loader), _loss(arguments), **options)
    team.told("writing", lambda: scores.save(out))
    _say(arguments, f"{len(scores.units.scored)} groups scored; written to {out}")
    return 0


def plan(arguments: argparse.Namespace) -> int:
    out = writable(arguments.out)
    plan = fk.Scores.load(existing(arguments.scores, SCORES)).plan(**_plan_options(arguments))
    plan.save(out)
    _say_removed(arguments, plan, out)
    return 0


def apply(arguments: argparse.Namespace) -> int:
    out = writable(arguments.out, folder=True)
    if arguments.compensate != "none" and not arguments.scores:
        raise fk.InputError(f"--compensate {arguments.compensate} takes what was measured: name its file with --scores")
    plan = fk.Plan.load(existing(arguments.plan, PLAN))
    scores = fk.Scores.load(existing(arguments.scores, SCORES)) if arguments.scores else None
    how = {"compensate": arguments.compensate, "biases": BIASES[arguments.biases], "scores": scores}
    small = fk.apply(named(arguments.model), plan, **how, inplace=True)
    fk.save_pruned(small, plan, out)
    _say_removed(arguments, plan, out)
    return 0


def prune(arguments: argparse.Namespace) -> int:
    check_given(arguments)
    if arguments.hf is not None:
        return _prune_folder(arguments)
    team = arguments.team
    out = team.told("where to write", lambda: writable(arguments.out, folder=True))
    options = _prune_options(arguments) | _more(arguments)
    options["keep_scores"] = arguments.iterations == 1  # later ones are of what the steps before have left
    model, loader, loss = named(arguments.model), named(arguments.loader), _loss(arguments)
    small, report = fk.prune(model, loader, loss, **options)
    assert report.plan is not None
    team.told("writing", lambda: _write(small, report, out))
    steps = f" in {arguments.iterations} steps" if arguments.iterations > 1 else ""
    _say_removed(arguments, report.plan, out, steps)
    if report.scores is None and (out / SCORES).exists():
        _say(arguments, f"{out / SCORES} is of an earlier run: several steps write no scores")
    return 0


def _write(small: Any, report: fk.Report, out: Path) -> None:
    assert report.plan is not None
    fk.save_pruned(small, report.plan, out)
    report.save(out / REPORT)
    if report.scores is not None:
        report.scores.save(out / SCORES)


def _prune_folder(arguments: argparse.Namespace) -> int:
    if arguments.more:
        raise fk.InputError("--more names further inputs of a MODEL; a folder's are those of --data")
    done = prune_folder(arguments, arguments.out, _prune_options(arguments))
    assert done.plan is not None
    _say_removed(arguments, done.plan, arguments.out)
    before, after = done.before["perplexity"], done.after["perplexity"]
    _say(arguments, f"perplexity {before:.4g} → {after:.4g} on what was held out")
    if "loads" in done.choices:
        _say(arguments, done.choices["loads"])
    return 0


def export(arguments: argparse.Namespace) -> int:
    if arguments.folder.is_file():
        raise fk.InputError(f"{arguments.folder} is a file; name the folder that holds it")
    done = fk.hf.export_gguf(arguments.folder, writable(arguments.gguf), arguments.type, vocab=arguments.vocab)
    goes_in = "text" if done.vocabulary else "token ids (without a vocabulary)"
    layers = f"{len(done.widths)} layers of the architecture {done.architecture}"
    _say(arguments, f"{layers}, {done.type}, {goes_in} in; written to {done.path}")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    plan = fk.Plan.load(existing(arguments.plan, PLAN))
    done = fk.compact_checkpoint(arguments.checkpoint, plan, arguments.out)
    lines = [f"{done.before:,} → {done.after:,} bytes of weights; written to {arguments.out}"]
    beside = arguments.plan.with_name(REPORT)
    how = fk.Report.load(beside).choices.get("compensation") if beside.is_file() else None
    if how not in (None, "none"):
        lines.append(
            f"nothing was folded in: {beside} tells of the compensation {how!r}, which takes data; the plan has none "
            "of it"
        )
    if done.ignored:
        lines.append(f"{len(done.ignored)} tensors have no place in the model and were left out: {done.ignored[0]}, …")
    served = plan.result.get("serves", {}).get("hf", "yes")
    if served != "yes":
        lines.append(f"from_pretrained does not load it ({served}); fairkern.apply makes a model of the plan that does")
    _say(arguments, "\n".join(lines))
    return 0


def report(arguments: argparse.Namespace) -> int:
    out = writable(arguments.out) if arguments.out else None
    picture = writable(arguments.picture) if arguments.picture else None
    if picture and not arguments.scores:
        raise fk.InputError("--picture shows the scores as well: name their file with --scores")
    model, inputs = named(arguments.model), named(arguments.inputs)
    plan = fk.Plan.load(existing(arguments.plan, PLAN))
    scores = fk.Scores.load(existing(arguments.scores, SCORES)) if arguments.scores else None
    before = {"latency_ms": fk.latency(model, inputs)}
    after = {"latency_ms": fk.latency(fk.apply(model, plan), inputs)}
    report = fk.summarise(plan, scores=scores, before=before, after=after)
    print(report.table())  # noqa: T201
    if out:
        report.save(out)
    if picture and scores is not None:
        fk.picture(scores, plan, picture)
    return 0


def _prune_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = _score_options(arguments) | _plan_options(arguments)
    if not options["gram"]:
        del options["gram"]  # where it is needed it is kept anyway
    options |= {name: getattr(arguments, name) for name in ("compensate", "iterations", "unused", "depth")}
    return options | {"biases": BIASES[arguments.biases], "ranks": arguments.team}


def _more(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"more": [named(spec) for spec in arguments.more]}


def _loss(arguments: argparse.Namespace) -> Any:
    return named(arguments.loss) if arguments.loss else None


def _score_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("samples_per_class", "projections", "seed", "recipe", "backend", "memory_budget", "gram")
    functions = {"class_of": arguments.class_of, "samples_of": arguments.samples_of}
    given = {name: named(spec) for name, spec in functions.items() if spec}
    if arguments.class_of is False:
        given["class_of"] = False
    if arguments.keep_moments is not None:
        given["keep_moments"] = arguments.keep_moments
    return {name: getattr(arguments, name) for name in names} | given | {"progress": not arguments.quiet}


def _plan_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("round_to", "max_remove", "min_keep", "ignore", "allocation", "removal", "serve")
    budget = {name: getattr(arguments, name) for name in ("tod", "keep_params", "keep_flops", "drop")}
    given = {name: value for name, value in budget.items() if value is not None}
    return given | {name: getattr(arguments, name) for name in names}


def _say_removed(arguments: argparse.Namespace, plan: fk.Plan, out: Path, how: str = "") -> None:
    removed, whole = plan.result["units_removed"], plan.result["units"]
    what = f"{removed} of {whole} units in {len(plan.groups)} groups removed{how}; written to {out}"
    _say(arguments, "\n".join([what, *plan.result.get("left_alone", [])]))


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
