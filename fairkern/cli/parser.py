"""The commands and their options."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fairkern.cli import commands
from fairkern.cli.arguments import Parser, by_kind, divisors, path, positive, share, size
from fairkern.cli.folders import add_folder

SHARED = ("score", "prune")  # what several processes of torchrun do together
COMPENSATIONS = ("none", "mean", "least_squares")


def command_line() -> argparse.ArgumentParser:
    top = Parser(prog="fairkern", description="Structured pruning of PyTorch models.")
    top.add_argument("--version", action="version", version=f"fairkern {version('fairkern')}")
    subparsers = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(run=run, command=name, shared=name in SHARED, parser=sub)
        return sub

    demo = command("demo", commands.demo, "train, score, plan and cut two small networks on real handwritten digits")
    demo.add_argument("--out", type=path, default=Path("fairkern-demo"), help="folder for its files")
    demo.add_argument("--model", choices=("vgg", "resnet", "both"), default="both")
    demo.add_argument("--keep-params", type=share, default=0.25, metavar="SHARE", help="default: 0.25")
    demo.add_argument("--epochs", type=positive, help="train for so many epochs instead of each model's own number")
    demo.add_argument("--seed", type=int, default=0, help="of weights, batches and scores (default: 0)")
    demo.add_argument("--quiet", action="store_true", help="print nothing")

    info = command("info", commands.info, "versions, backends per operator and why one cannot run, threads, devices")
    info.add_argument("--json", action="store_true")

    trace = command("trace", commands.trace, "print what can be cut from a model, and why the rest cannot")
    trace.add_argument("model", metavar="MODEL", help="package.module:callable")
    trace.add_argument("inputs", metavar="INPUTS", help="package.module:callable: a tensor, a tuple or a dict")
    _add_tracing(trace)
    trace.add_argument("--no-verify", dest="verify", action="store_false", help="skip the proof by running")
    trace.add_argument("--time-limit", type=float, default=600.0, metavar="SECONDS", help="give up after this long")
    trace.add_argument("--seed", type=int, default=0, help="of what the proof removes and runs on (default: 0)")

    score = command("score", commands.score, "score every unit of a model in one pass over a loader")
    _add_scoring(score)
    score.add_argument("--out", type=path, required=True, help="file to write, for example scores.safetensors")

    plan = command("plan", commands.plan, "turn scores into a plan for a budget")
    plan.add_argument("scores", metavar="SCORES", type=path, help="file written by `fairkern score`")
    _add_planning(plan)
    plan.add_argument("--out", type=path, required=True, help="file to write, for example plan.json")
    plan.add_argument("--quiet", action="store_true", help="print nothing")

    apply = command("apply", commands.apply, "cut a model by a plan and save what is left")
    apply.add_argument("model", metavar="MODEL", help="package.module:callable")
    apply.add_argument("plan", metavar="PLAN", type=path, help="file written by `fairkern plan`")
    apply.add_argument("--compensate", choices=COMPENSATIONS, default="none", help="fold in what goes; needs --scores")
    _add_biases(apply)
    apply.add_argument("--scores", type=path, help="file written by `fairkern score` (with --gram for least_squares)")
    apply.add_argument("--out", type=path, required=True, help="folder for the weights and the plan")
    apply.add_argument("--quiet", action="store_true", help="print nothing")

    prune = command("prune", commands.prune, "score, plan, cut and save in one go")
    _add_scoring(prune, optional=True)
    _add_planning(prune)
    _add_tracing(prune)
    methods = (*COMPENSATIONS, "sequential", "joint")
    prune.add_argument("--compensate", choices=methods, help="fold in what goes; default: the best that can be had")
    _add_biases(prune)
    steps = "cut, score again and cut, in so many steps towards the budget; then no scores are written"
    prune.add_argument("--iterations", type=positive, default=1, metavar="N", help=steps)
    add_folder(prune)
    out = "folder for the weights, plan, report and scores"
    prune.add_argument("-o", "--out", type=path, required=True, help=out)

    compact = command("compact", commands.compact, "cut a checkpoint by a plan, file by file, without its model")
    checkpoint = "folder with safetensors (shards and their index, or one file), or such a file"
    compact.add_argument("checkpoint", metavar="CHECKPOINT", type=path, help=checkpoint)
    compact.add_argument("--plan", type=path, required=True, help="plan of that model, as `fairkern plan` writes it")
    folder = "new folder; a run that was killed goes on when it is given again"
    compact.add_argument("-o", "--out", type=path, required=True, help=folder)
    compact.add_argument("--quiet", action="store_true", help="print nothing")

    export = command(
        "export", commands.export, "write a folder of transformers, pruned or not, as a file for llama.cpp"
    )
    folder = "config.json, safetensors and tokenizer: what `fairkern prune --hf` leaves, or save_pretrained"
    export.add_argument("folder", metavar="FOLDER", type=path, help=folder)
    export.add_argument(
        "--gguf", type=path, required=True, metavar="FILE", help="file to write, for example model.gguf"
    )
    types = "of matrices; q8_0 packs 32 weights of a row (default: f16)"
    export.add_argument("--type", choices=("f32", "f16", "bf16", "q8_0"), default="f16", help=types)
    without = "leave the tokenizer out: token ids in, logits out"
    export.add_argument("--no-vocab", dest="vocab", action="store_false", help=without)
    export.add_argument("--quiet", action="store_true", help="print nothing")

    report = command("report", commands.report, "measure a model before and after a plan: parameters, FLOPs, latency")
    report.add_argument("model", metavar="MODEL", help="package.module:callable")
    report.add_argument("plan", metavar="PLAN", type=path, help="file written by `fairkern plan`, or a pruned folder's")
    timed = "package.module:callable: what it is timed on; FLOPs are those of the two samples that `score` traced"
    report.add_argument("inputs", metavar="INPUTS", help=timed)
    report.add_argument("--scores", type=path, help="also show what was scored")
    report.add_argument("--out", type=path, help="JSON file to write")
    report.add_argument("--picture", type=path, help="PNG file to write")
    return top


def _add_biases(parser: argparse.ArgumentParser) -> None:
    given = "give biases to weights that have none: where the model's format has a place (auto), anywhere, or nowhere"
    parser.add_argument("--biases", choices=commands.BIASES, default="auto", help=given)


def _add_tracing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unused", action="append", default=[], metavar="PATTERN", help="what no input ever reaches")
    deep = "what a residual block adds (attention, an MLP, convolutions) may go as a whole, and so may whole layers; "
    deep += "with --serve hf (of a folder the default) only whole layers"
    parser.add_argument("--depth", action="store_true", help=deep)
    more = "package.module:callable: further inputs, which reach more code"
    parser.add_argument("--more", action="append", default=[], metavar="INPUTS", help=more)


def _add_scoring(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    number: Any = "?" if optional else None
    parser.add_argument("model", metavar="MODEL", nargs=number, help="package.module:callable")
    batches = "package.module:callable: an iterable of batches"
    parser.add_argument("loader", metavar="LOADER", nargs=number, help=batches)
    parser.add_argument(
        "loss", metavar="LOSS", nargs="?", help="package.module:callable that returns the loss function"
    )
    of_each = "so many samples of each class enter U; R takes all (default: 32)"
    parser.add_argument("--samples-per-class", type=positive, default=32, metavar="N", help=of_each)
    directions = "directions on which units are compared between classes (default: 128)"
    parser.add_argument("--projections", type=positive, default=128, metavar="N", help=directions)
    function = "package.module:callable that returns a function of a batch:"
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--class-of", metavar="FUNCTION", help=f"{function} its labels, one per sample or place")
    without = "the targets are no classes: leave out U"
    classes.add_argument("--no-classes", dest="class_of", action="store_const", const=False, help=without)
    parser.add_argument("--samples-of", metavar="FUNCTION", help=f"{function} how many samples it holds")
    drawn = "of the directions, and of what the model or the loss draws at random (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=drawn)
    taps = "score what the next layers read, or as in the paper what a layer returns"
    parser.add_argument("--recipe", choices=("default", "paper"), default="default", help=taps)
    parser.add_argument("--backend", default="auto", help="auto (default) or one that `fairkern info` lists")
    budget = (
        "bytes, also as 2GB (or 2G) or 512MiB: beyond the weights, for class samples and second moments; where it is "
    )
    budget += "little, more passes are made"
    parser.add_argument("--memory-budget", type=size, metavar="SIZE", help=budget)
    parser.add_argument(
        "--gram", action="store_true", help="keep what the residual (a second-order saliency) and least squares take"
    )
    folder = "new folder that second moments are written to, and not kept in memory"
    parser.add_argument("--keep-moments", type=path, metavar="FOLDER", help=folder)
    parser.add_argument("--quiet", action="store_true", help="print nothing")


def _add_planning(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tod", type=float, metavar="TOLERANCE", help="tolerance of difference, 0 to 1")
    budget.add_argument("--keep-params", type=float, metavar="SHARE", help="share of all parameters that may stay")
    budget.add_argument("--keep-flops", type=float, metavar="SHARE", help="share of all FLOPs that may stay")
    exact = "so many units of every group of a kind go, for example expert=2"
    budget.add_argument("--drop", type=by_kind, metavar="KIND=N", help=exact)
    multiples = "keep multiples of N channels (default: 1), or by kind of unit: neuron=128,head=1"
    parser.add_argument("--round-to", type=divisors, default=1, metavar="N", help=multiples)
    servers = (
        "hf, vllm, gguf, gguf:TYPE or deci: what is to load the result, so which layers stay equal. With --hf, OUT is "
        "for from_pretrained (hf, the default, and wherever layers stay equal), else for servers that read block "
        "configs (vllm), or for fairkern export --gguf and load_pruned, with the uncut model's config.json (gguf, deci)"
    )
    parser.add_argument("--serve", metavar="SERVER", help=servers)
    parser.add_argument("--max-remove", type=float, default=0.99, metavar="SHARE", help="at most this share of a group")
    parser.add_argument("--min-keep", type=positive, default=1, metavar="N", help="at least N units of every group")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="leave these groups alone")
    spread = (
        "how removal is spread over groups: by tolerance, in equal shares, by one threshold for all, by one of each "
    )
    spread += "group's own scale, or by one over what a unit costs (default: what suits the scores)"
    parser.add_argument("--allocation", choices=("tod", "uniform", "global", "normalized", "priced"), help=spread)
    signal = "signal that orders the units, low goes first: residual (needs second moments), wasserstein (U, needs "
    signal += "classes), taylor (R) or random (default: what suits the scores)"
    parser.add_argument("--removal", metavar="SIGNAL", help=signal)
