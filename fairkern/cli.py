"""The `fairkern` command: thin wrappers over the public API.

Models, loaders, losses and inputs are named as `package.module:callable` and called without arguments; the
current folder can be imported from. What fairkern itself raises becomes one line on stderr and exit code 2;
an exception of the user's own code passes through with its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

import fairkern as fk
from fairkern.arguments import Parser, path, positive, share

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
SCORES, PLAN = "scores.safetensors", "plan.json"
COMPENSATIONS = ("none", "mean", "least_squares")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for an error that fairkern names; 130 for Ctrl-C.

    `demo` returns 1 where the cut model is not what the masked model is.
    """
    try:
        arguments = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, warnings.showwarning)
            return int(arguments.run(arguments))
    except SystemExit as stop:  # argparse has printed why
        return int(stop.code or 0)
    except fk.FairkernError as error:
        print(f"fairkern: error: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("fairkern: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _warn(others: Any, message: Warning | str, category: type[Warning], filename: str, *where: Any) -> None:
    """One line for what fairkern warns of, without its code; what others warn of looks as it always does."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        print(f"fairkern: warning: {message}", file=sys.stderr)  # noqa: T201
    else:
        others(message, category, filename, *where)


def named(spec: str) -> Any:
    """What `package.module:callable` returns when called without arguments.

    Raises `InputError` where the name leads nowhere or the callable wants arguments.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise fk.InputError(f"{spec!r} is not of the form package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise fk.InputError(
                f"{spec!r}: there is no module {error.name!r} in the current folder or among the installed packages"
            ) from error
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            raise fk.InputError(f"{spec!r}: {getattr(found, '__name__', found)!r} has no attribute {part!r}")
        found = getattr(found, part)
    if not callable(found):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a callable; name a function that returns it")
    if isinstance(found, nn.Module):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a function that returns it: wrap it in one")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise fk.InputError(f"{spec!r} cannot be called without arguments ({error}); wrap it in a function") from error
    except ValueError:  # no signature to look at: call it and see
        pass
    return found()


def _demo(arguments: argparse.Namespace) -> int:
    from fairkern.demo import run  # not every command needs it

    run.require()
    console = Console(quiet=arguments.quiet)
    models = tuple(run.BUILDERS) if arguments.model == "both" else (arguments.model,)
    options = run.Options(
        out=_writable(arguments.out, folder=True),
        models=models,
        keep_params=arguments.keep_params,
        seed=arguments.seed,
        quiet=arguments.quiet,
        epochs=arguments.epochs,
    )
    outcomes = run.run(options, console)
    run.show(outcomes, options, console)
    return 0 if all(outcome.exact for outcome in outcomes.values()) else FAILED


def _info(arguments: argparse.Namespace) -> int:
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


def _trace(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in ("unused", "verify", "seed", "time_limit")}
    units = fk.trace(named(arguments.model), named(arguments.inputs), **options, **_more(arguments))
    print(units.explain())  # noqa: T201
    return 0


def _score(arguments: argparse.Namespace) -> int:
    out = _writable(arguments.out)
    scores = fk.score(named(arguments.model), named(arguments.loader), _loss(arguments), **_score_options(arguments))
    scores.save(out)
    _say(arguments, f"{len(scores.units.scored)} groups scored; written to {out}")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    out = _writable(arguments.out)
    plan = fk.Scores.load(_existing(arguments.scores, SCORES)).plan(**_plan_options(arguments))
    plan.save(out)
    _say_removed(arguments, plan, out)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    out = _writable(arguments.out, folder=True)
    if arguments.compensate != "none" and not arguments.scores:
        raise fk.InputError(f"--compensate {arguments.compensate} takes what was measured: name its file with --scores")
    plan = fk.Plan.load(_existing(arguments.plan, PLAN))
    scores = fk.Scores.load(_existing(arguments.scores, SCORES)) if arguments.scores else None
    small = fk.apply(named(arguments.model), plan, compensate=arguments.compensate, scores=scores, inplace=True)
    fk.save_pruned(small, plan, out)
    _say_removed(arguments, plan, out)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    out = _writable(arguments.out, folder=True)
    options = _score_options(arguments) | _plan_options(arguments) | _more(arguments)
    if not options["gram"]:
        del options["gram"]  # where it is needed it is kept anyway
    options |= {name: getattr(arguments, name) for name in ("compensate", "iterations", "unused")}
    options["keep_scores"] = arguments.iterations == 1  # later ones are of what the steps before have left
    model, loader, loss = named(arguments.model), named(arguments.loader), _loss(arguments)
    small, report = fk.prune(model, loader, loss, **options)
    assert report.plan is not None
    fk.save_pruned(small, report.plan, out)
    report.save(out / "report.json")
    if report.scores is not None:
        report.scores.save(out / SCORES)
    steps = f" in {arguments.iterations} steps" if arguments.iterations > 1 else ""
    _say_removed(arguments, report.plan, out, steps)
    if report.scores is None and (out / SCORES).exists():
        _say(arguments, f"{out / SCORES} is of an earlier run: several steps write no scores")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    out = _writable(arguments.out) if arguments.out else None
    picture = _writable(arguments.picture) if arguments.picture else None
    if picture and not arguments.scores:
        raise fk.InputError("--picture shows the scores as well: name their file with --scores")
    model, inputs = named(arguments.model), named(arguments.inputs)
    plan = fk.Plan.load(_existing(arguments.plan, PLAN))
    scores = fk.Scores.load(_existing(arguments.scores, SCORES)) if arguments.scores else None
    before = {"latency_ms": fk.latency(model, inputs)}
    after = {"latency_ms": fk.latency(fk.apply(model, plan), inputs)}
    report = fk.summarise(plan, scores=scores, before=before, after=after)
    print(report.table())  # noqa: T201
    if out:
        report.save(out)
    if picture and scores is not None:
        fk.picture(scores, plan, picture)
    return 0


def _more(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"more": [named(spec) for spec in arguments.more]}


def _loss(arguments: argparse.Namespace) -> Any:
    return named(arguments.loss) if arguments.loss else None


def _score_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("samples_per_class", "projections", "seed", "recipe", "backend", "memory_budget", "gram")
    if arguments.class_of and not arguments.classes:
        raise fk.InputError("--class-of says what the classes are, and --no-classes that there are none: give one")
    functions = {"class_of": arguments.class_of, "samples_of": arguments.samples_of}
    given = {name: named(spec) for name, spec in functions.items() if spec}
    classes = {} if arguments.classes else {"class_of": False}
    return {name: getattr(arguments, name) for name in names} | given | classes | {"progress": not arguments.quiet}


def _plan_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("round_to", "max_remove", "min_keep", "ignore", "allocation", "removal")
    budget = {name: getattr(arguments, name) for name in ("tod", "keep_params", "keep_flops")}
    given = {name: value for name, value in budget.items() if value is not None}
    return given | {name: getattr(arguments, name) for name in names}


def _say_removed(arguments: argparse.Namespace, plan: fk.Plan, out: Path, how: str = "") -> None:
    removed, whole = plan.result["units_removed"], plan.result["units"]
    what = f"{removed} of {whole} units in {len(plan.groups)} groups removed{how}; written to {out}"
    _say(arguments, "\n".join([what, *plan.result.get("left_alone", [])]))


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def _existing(path: Path, within: str) -> Path:
    """The same path, once there is a file; `within` is its name in a folder of `fairkern prune`."""
    if path.is_dir():
        there = f": {path / within}" if (path / within).is_file() else ""
        raise fk.InputError(f"{path} is a folder; name the file{there}")
    if not path.is_file():
        raise fk.InputError(f"there is no file {path}")
    return path


def _writable(path: Path, *, folder: bool = False) -> Path:
    """The same path, once a file or folder can be written there: better known before an hour's work."""
    if path.exists() and path.is_dir() != folder:
        is_, expected = ("file", "folder") if folder else ("folder", "file")
        raise fk.InputError(f"cannot write {path}: it is a {is_}, and a {expected} is expected")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fk.InputError(f"cannot write {path}: {error.strerror or error}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise fk.InputError(f"cannot write {path}: no permission")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="fairkern", description="Structured pruning of PyTorch models.")
    parser.add_argument("--version", action="version", version=f"fairkern {version('fairkern')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "train, score, plan and cut two small networks on real handwritten digits")
    demo.add_argument("--out", type=path, default=Path("fairkern-demo"), help="folder for its files")
    demo.add_argument("--model", choices=("vgg", "resnet", "both"), default="both")
    demo.add_argument("--keep-params", type=share, default=0.25, metavar="SHARE", help="default: 0.25")
    demo.add_argument("--epochs", type=positive, help="train for so many epochs instead of each model's own number")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quiet", action="store_true", help="print nothing")

    info = command("info", _info, "versions, backends per operator and why one cannot run, threads, devices")
    info.add_argument("--json", action="store_true")

    trace = command("trace", _trace, "print what can be cut from a model, and why the rest cannot")
    trace.add_argument("model", metavar="MODEL", help="package.module:callable")
    trace.add_argument("inputs", metavar="INPUTS", help="package.module:callable: a tensor, a tuple or a dict")
    _add_tracing(trace)
    trace.add_argument("--no-verify", dest="verify", action="store_false", help="skip the proof by running")
    trace.add_argument("--time-limit", type=float, default=600.0, metavar="SECONDS", help="give up after this long")
    trace.add_argument("--seed", type=int, default=0)

    score = command("score", _score, "score every unit of a model in one pass over a loader")
    _add_scoring(score)
    score.add_argument("--out", type=path, required=True, help="file to write, for example scores.safetensors")

    plan = command("plan", _plan, "turn scores into a plan for a budget")
    plan.add_argument("scores", metavar="SCORES", type=path, help="file written by `fairkern score`")
    _add_planning(plan)
    plan.add_argument("--out", type=path, required=True, help="file to write, for example plan.json")
    plan.add_argument("--quiet", action="store_true", help="print nothing")

    apply = command("apply", _apply, "cut a model by a plan and save what is left")
    apply.add_argument("model", metavar="MODEL", help="package.module:callable")
    apply.add_argument("plan", metavar="PLAN", type=path, help="file written by `fairkern plan`")
    apply.add_argument("--compensate", choices=COMPENSATIONS, default="none", help="fold in what goes; needs --scores")
    apply.add_argument("--scores", type=path, help="file written by `fairkern score` (with --gram for least_squares)")
    apply.add_argument("--out", type=path, required=True, help="folder for the weights and the plan")
    apply.add_argument("--quiet", action="store_true", help="print nothing")

    prune = command("prune", _prune, "score, plan, cut and save in one go")
    _add_scoring(prune)
    _add_planning(prune)
    _add_tracing(prune)
    methods = (*COMPENSATIONS, "sequential")
    prune.add_argument("--compensate", choices=methods, help="fold in what goes; default: the best that can be had")
    steps = "cut, score again and cut, in so many steps towards the budget; then no scores are written"
    prune.add_argument("--iterations", type=positive, default=1, metavar="N", help=steps)
    prune.add_argument("--out", type=path, required=True, help="folder for the weights, plan, report and scores")

    report = command("report", _report, "measure a model before and after a plan: parameters, FLOPs, latency")
    report.add_argument("model", metavar="MODEL", help="package.module:callable")
    report.add_argument("plan", metavar="PLAN", type=path, help="file written by `fairkern plan`, or a pruned folder's")
    timed = "package.module:callable: what it is timed on; FLOPs are those of the two samples that `score` traced"
    report.add_argument("inputs", metavar="INPUTS", help=timed)
    report.add_argument("--scores", type=path, help="also show what was scored")
    report.add_argument("--out", type=path, help="JSON file to write")
    report.add_argument("--picture", type=path, help="PNG file to write")
    return parser


def _add_tracing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unused", action="append", default=[], metavar="PATTERN", help="what no input ever reaches")
    more = "package.module:callable: further inputs, which reach more code"
    parser.add_argument("--more", action="append", default=[], metavar="INPUTS", help=more)


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="package.module:callable")
    parser.add_argument("loader", metavar="LOADER", help="package.module:callable: an iterable of batches")
    parser.add_argument(
        "loss", metavar="LOSS", nargs="?", help="package.module:callable that returns the loss function"
    )
    of_each = "so many samples of each class enter U; R takes all (default: 32)"
    parser.add_argument("--samples-per-class", type=positive, default=32, metavar="N", help=of_each)
    directions = "directions on which units are compared between classes (default: 128)"
    parser.add_argument("--projections", type=positive, default=128, metavar="N", help=directions)
    for name, gives in (("class", "its labels, one per sample or place"), ("samples", "how many samples it holds")):
        what = f"package.module:callable that returns a function of a batch: {gives}"
        parser.add_argument(f"--{name}-of", metavar="FUNCTION", help=what)
    parser.add_argument(
        "--no-classes", dest="classes", action="store_false", help="the targets are no classes: leave out U"
    )
    parser.add_argument("--seed", type=int, default=0)
    taps = "score what the next layers read, or as in the paper what a layer returns"
    parser.add_argument("--recipe", choices=("default", "paper"), default="default", help=taps)
    parser.add_argument("--backend", default="auto", help="auto (default) or one that `fairkern info` lists")
    budget = "that class samples may take; where it is too little, more passes are made"
    parser.add_argument("--memory-budget", type=positive, metavar="BYTES", help=budget)
    parser.add_argument(
        "--gram", action="store_true", help="keep what the residual (a second-order saliency) and least squares take"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def _add_planning(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tod", type=float, metavar="TOLERANCE", help="tolerance of difference, 0 to 1")
    budget.add_argument("--keep-params", type=float, metavar="SHARE", help="share of all parameters that may stay")
    budget.add_argument("--keep-flops", type=float, metavar="SHARE", help="share of all FLOPs that may stay")
    parser.add_argument(
        "--round-to", type=positive, default=1, metavar="N", help="keep multiples of N units (default: 1)"
    )
    parser.add_argument("--max-remove", type=float, default=0.99, metavar="SHARE", help="at most this share of a group")
    parser.add_argument("--min-keep", type=positive, default=1, metavar="N", help="at least N units of every group")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="leave these groups alone")
    parser.add_argument("--allocation", choices=("tod", "uniform", "global", "normalized"))
    parser.add_argument("--removal", metavar="SIGNAL", help="signal that orders the units; low goes first")
