"""The stages, one function a command: arguments in, an `Outcome` out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fairkern as fk
from fairkern.cli.files import apart, existing, read_by, writable, written, written_folder
from fairkern.cli.folders import check_given, prune_folder
from fairkern.cli.given import device, function, named, on, signal
from fairkern.cli.options import BIASES
from fairkern.cli.output import Outcome, lines

SCORES, PLAN, REPORT = "scores.safetensors", "plan.json", "report.json"
WEIGHTS = "model.safetensors"


def trace(arguments: argparse.Namespace) -> Outcome:
    options = {name: getattr(arguments, name) for name in ("unused", "depth", "verify", "seed", "time_limit")}
    model, inputs = placed(arguments, arguments.model, arguments.inputs)
    units = fk.trace(model, inputs, **options, **_more(arguments))
    groups = [
        {
            "name": group.name,
            "kind": group.kind,
            "units": group.units,
            "sets": group.sets,
            "axes": [str(axis.axis) for axis in group.axes],
            "stays": None if group.frozen is None else str(group.frozen),
        }
        for group in units.groups
    ]
    axes = [{"axis": str(item.axis), "stays": item.reason} for item in units.frozen]
    facts = {"model": units.model, "proven": units.proven, "groups": groups, "axes": axes, "notes": list(units.notes)}
    return Outcome(facts, shown=units.explain())


def score(arguments: argparse.Namespace) -> Outcome:
    team = arguments.team
    out = team.told("where to write", lambda: writable(arguments.out, read=read_by(arguments)))
    options = score_options(arguments) | {"ranks": team, "max_remove": arguments.max_remove}
    model, loader = placed(arguments, arguments.model), named(arguments.loader)
    scores = fk.score(model, loader, loss(arguments), **options)
    team.told("writing", lambda: _save(scores, out))
    facts = {"out": out, "groups": len(scores.units.scored), "signals": [*scores.signals]}
    return Outcome(
        {**facts, "provenance": scores.provenance}, said=(f"{facts['groups']} groups scored; written to {out}",)
    )


def plan(arguments: argparse.Namespace) -> Outcome:
    out = writable(arguments.out, read=read_by(arguments))
    table = _table(arguments)
    if arguments.keep_latency is not None and table is None:
        raise fk.InputError(
            "--keep-latency goes by measured times: name their file with --latency (`fairkern latency MODEL INPUTS "
            "--out FILE` measures them)"
        )
    scores = fk.Scores.load(existing(arguments.scores, SCORES))
    plan = scores.plan(latency=table, **_plan_options(arguments))
    _save(plan, out)
    return Outcome({"out": out, **_facts(plan)}, said=(*_removed(plan, out), *_kept(plan)))


def apply(arguments: argparse.Namespace) -> Outcome:
    out = writable(arguments.out, folder=True)
    for name in (WEIGHTS, PLAN):
        writable(out / name, read=read_by(arguments))
    how = arguments.compensate
    if how != "none" and not arguments.scores:
        raise fk.InputError(f"--compensate {how} takes what was measured: name its file with --scores")
    if how in ("sequential", "joint") and not arguments.loader:
        raise fk.InputError(f"--compensate {how} looks at the data again: name it with --loader")
    if how == "joint" and not arguments.loss:
        raise fk.InputError("--compensate joint goes by the loss: name it with --loss")
    plan = fk.Plan.load(existing(arguments.plan, PLAN))
    scores = fk.Scores.load(existing(arguments.scores, SCORES)) if arguments.scores else None
    given = {"compensate": how, "biases": BIASES[arguments.biases], "scores": scores, "inplace": True}
    given["progress"] = progress(arguments)
    if arguments.loader:
        given |= {"loader": named(arguments.loader), "loss_fn": loss(arguments), "inplace": False}
    small = fk.apply(placed(arguments, arguments.model), plan, **given)
    with written_folder(out) as place:
        fk.save_pruned(small, plan, place, build=arguments.model)
    left = fk.summarise(plan, small=small)  # with the biases that compensation has added
    facts = {"out": out, "compensation": how, **_facts(plan), "params": int(left.after["params"])}
    stale = [f"{out / name} is of an earlier run" for name in (REPORT, SCORES) if (out / name).exists()]
    return Outcome(facts, said=(*_removed(plan, out), *_kept(plan, left), *stale))


def prune(arguments: argparse.Namespace) -> Outcome:
    check_given(arguments)
    if arguments.hf is not None:
        return _prune_folder(arguments)
    team = arguments.team
    if arguments.budgets and not arguments.evaluate:
        raise fk.InputError("--budgets are tried to be evaluated: name a function with --evaluate")
    out = team.told("where to write", lambda: _places(arguments))
    options = _prune_options(arguments) | _more(arguments)
    if (table := _table(arguments)) is not None:
        options["latency"] = table
    options |= {"evaluate": evaluate(arguments), "budgets": arguments.budgets or ()}
    options["keep_scores"] = arguments.iterations == 1  # later ones are of what the steps before have left
    model, loader = placed(arguments, arguments.model), named(arguments.loader)
    small, report = fk.prune(model, loader, loss(arguments), **options)
    assert report.plan is not None
    team.told("writing", lambda: _write(small, report, out, arguments))
    steps = f" in {arguments.iterations} steps" if arguments.iterations > 1 else ""
    said = [*_removed(report.plan, out, steps), *_kept(report.plan, report)]
    if report.scores is None and (out / SCORES).exists():
        said.append(f"{out / SCORES} is of an earlier run: several steps write no scores")
    said += _paged(arguments)
    return Outcome({"out": out, **report_facts(report)}, said=tuple(said))


def _places(arguments: argparse.Namespace) -> Path:
    apart(arguments.html, folder=arguments.out)
    if arguments.html:
        writable(arguments.html, read=read_by(arguments))
    return writable(arguments.out, folder=True)


def _write(small: Any, report: fk.Report, out: Path, arguments: argparse.Namespace) -> None:
    assert report.plan is not None
    with written_folder(out) as place:
        fk.save_pruned(small, report.plan, place, build=arguments.model, report=report)
        if report.scores is not None:
            report.scores.save(place / SCORES)
    if arguments.html is not None:
        with written(arguments.html):
            report.save_html(arguments.html)


def _prune_folder(arguments: argparse.Namespace) -> Outcome:
    for name, why in _OF_MODELS.items():
        if getattr(arguments, name):
            raise fk.InputError(f"--{name} {why}")
    apart(arguments.html, folder=arguments.out)
    if arguments.html:
        writable(arguments.html, read=read_by(arguments))
    options = _prune_options(arguments)
    if arguments.evaluate:
        options["evaluate"] = evaluate(arguments)
    done = prune_folder(arguments, arguments.out, options)
    assert done.plan is not None
    before, after = done.before["perplexity"], done.after["perplexity"]
    said = [*_removed(done.plan, arguments.out), *_kept(done.plan, done)]
    said.append(f"perplexity {before:.4g} → {after:.4g} on what was held out")
    if "loads" in done.choices:
        said.append(done.choices["loads"])
    if arguments.html:
        with written(arguments.html):
            done.save_html(arguments.html)
    said += _paged(arguments)
    return Outcome({"out": arguments.out, **report_facts(done)}, said=tuple(said))


def _paged(arguments: argparse.Namespace) -> list[str]:
    return [f"written to {arguments.html}"] if arguments.html else []


_OF_MODELS = {
    "more": "names further inputs of a MODEL; a folder's are those of --data",
    "latency": "names times of a MODEL; of a folder they are measured",
    "budgets": "are tried of a MODEL; of a folder only the one that is kept is cut",
}


def placed(arguments: argparse.Namespace, *specs: str) -> Any:
    """What these names lead to, on the device that was asked for."""
    where = device(arguments.device)
    found = [on(where, named(spec)) for spec in specs]
    return found[0] if len(found) == 1 else found


def report_facts(report: fk.Report) -> dict[str, Any]:
    """What a report says, but for what is no data of its own."""
    return {name: value for name, value in vars(report).items() if name not in ("plan", "scores")}


def loss(arguments: argparse.Namespace) -> Any:
    return function(arguments.loss, 2) if arguments.loss else None


def evaluate(arguments: argparse.Namespace) -> Any:
    return function(arguments.evaluate, 1) if arguments.evaluate else None


def score_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ["samples_per_class", "projections", "recipe", "reduction", "pairs", "loss_reduction", "backend"]
    names += ["memory_budget", "gram", *(["seed"] if hasattr(arguments, "seed") else [])]  # a sweep has several
    functions = {"class_of": arguments.class_of, "samples_of": arguments.samples_of}
    given: dict[str, Any] = {name: function(spec, 1) for name, spec in functions.items() if spec}
    if arguments.class_of is False:
        given["class_of"] = False
    for name in ("keep_moments", "walk", "walk_folder"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    return {name: getattr(arguments, name) for name in names} | given | {"progress": progress(arguments)}


def free_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same, without what is kept anyway where it is needed."""
    options = score_options(arguments)
    return {name: value for name, value in options.items() if name != "gram" or value}


def progress(arguments: argparse.Namespace) -> Any:
    """How a command tells what it is at: not, by bars on a terminal, or line by line."""
    return not arguments.quiet and (True if sys.stderr is not None and sys.stderr.isatty() else lines())


def _prune_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = free_options(arguments) | _plan_options(arguments)
    options |= {name: getattr(arguments, name) for name in ("compensate", "iterations", "unused", "depth")}
    return options | {"biases": BIASES[arguments.biases], "ranks": arguments.team}


def _plan_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("round_to", "max_remove", "min_keep", "ignore", "allocation", "removal", "protect", "serve")
    budgets = ("tod", "keep_params", "keep_flops", "keep_latency", "drop")
    given = {name: value for name in budgets if (value := getattr(arguments, name)) is not None}
    asked = {name: getattr(arguments, name) for name in names}
    return given | asked | {role: signal(asked[role]) for role in ("removal", "protect")}


def _more(arguments: argparse.Namespace) -> dict[str, Any]:
    where = device(arguments.device)
    return {"more": [on(where, named(spec)) for spec in arguments.more]}


def _table(arguments: argparse.Namespace) -> fk.LatencyTable | None:
    return fk.LatencyTable.load(existing(arguments.latency, "latency.json")) if arguments.latency else None


def _save(made: Any, out: Path) -> None:
    with written(out):
        made.save(out)


def _facts(plan: fk.Plan) -> dict[str, Any]:
    groups = [{"name": g.name, "kind": g.kind, "units": g.total, "removed": g.removed.size} for g in plan.groups]
    return {"model": plan.model, "request": plan.request, "result": plan.result, "groups": groups}


def _removed(plan: fk.Plan, out: Path, how: str = "") -> list[str]:
    removed, whole = plan.result["units_removed"], plan.result["units"]
    what = f"{removed:,} of {whole:,} units in {len(plan.groups)} groups removed{how}; written to {out}"
    return [what, *plan.result.get("left_alone", [])]


def _kept(plan: fk.Plan, report: fk.Report | None = None) -> list[str]:
    """What is left of parameters, FLOPs and time: of a plan as it says, of a report as it was measured."""
    result, said = plan.result, []
    after = result["params_after"] if report is None else int(report.after["params"])
    said.append(_share("parameters", result["params_before"], after))
    said.append(f"{_share('FLOPs', result['flops_before'], result['flops_after'])}, of the inputs that were traced")
    if "latency_before_ms" in result:
        said.append(f"{_share('latency', result['latency_before_ms'], result['latency_after_ms'], ' ms')}, predicted")
    if report is not None:
        said += [_measured(name, report) for name in report.before if name in report.after and name not in _SAID]
    return said


_SAID = {"params", "flops", "latency_ms", "latency_predicted_ms"}
_SAID |= {"perplexity", "tokens_per_second", "cache_bytes_per_token"}  # of a folder


def _measured(name: str, report: fk.Report) -> str:
    return f"{name} {report.before[name]:.4g} → {report.after[name]:.4g}"


def _share(what: str, before: float, after: float, unit: str = "") -> str:
    shown = [f"{value:,.4g}{unit}" if unit else f"{value:,}" for value in (before, after)]
    return f"{what} {' → '.join(shown)} ({after / before:.1%} kept)" if before else f"{what} {shown[1]}"
