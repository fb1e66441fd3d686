"""Options that several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from fairkern.cli.arguments import by_kind, divisors, part, path, positive, share, size, tolerance, whole

SPEC = "package.module:callable"
COMPENSATIONS = ("none", "mean", "least_squares", "sequential", "joint")
SIGNALS = (
    "residual (second-order; needs second moments), wasserstein (U, needs classes), taylor (R), activation (needs "
    "second moments), l1, l2, random"
)
OF_A_GROUP = f"or {SPEC}, a function of a group that gives a score a unit"
BIASES = {"auto": "auto", "yes": True, "no": False}


def add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object on standard output, all else on the other")
    group.add_argument("-q", "--quiet", action="store_true", help="nothing on standard error but warnings and errors")
    group.add_argument("--debug", action="store_true", help="where an error comes from, as Python's traceback")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{SPEC}, which is called without arguments and returns a model")


def add_device(parser: argparse.ArgumentParser) -> None:
    where = "where the model goes, and its inputs: for example cpu, cuda or cuda:1 (default: where they are made)"
    parser.add_argument("--device", metavar="DEVICE", help=where)


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--out", type=path, required=True, metavar="OUT", help=what)


def add_evaluate(parser: argparse.ArgumentParser, required: bool = False) -> None:
    function = f"{SPEC}: a function of a model that returns a number, or numbers by name, or what returns one"
    parser.add_argument("--evaluate", metavar="FUNCTION", required=required, help=function)


def add_table(parser: argparse.ArgumentParser, how: str) -> None:
    parser.add_argument("--latency", type=path, metavar="FILE", help=f"table that `fairkern latency` wrote: {how}")


def add_biases(parser: argparse.ArgumentParser) -> None:
    given = "give biases to weights that have none: where the model's format has a place (auto), anywhere, or nowhere"
    parser.add_argument("--biases", choices=BIASES, default="auto", help=given)


def add_tracing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unused", action="append", default=[], metavar="PATTERN", help="what no input ever reaches")
    deep = "what a residual block adds (attention, an MLP, convolutions) may go as a whole, and so may whole layers; "
    deep += "with --serve hf (of a folder the default) only whole layers"
    parser.add_argument("--depth", action="store_true", help=deep)
    more = f"{SPEC}: further inputs, which reach more code"
    parser.add_argument("--more", action="append", default=[], metavar="INPUTS", help=more)


def add_scoring(parser: argparse.ArgumentParser, *, optional: bool = False, seed: bool = True) -> None:
    number: Any = "?" if optional else None
    parser.add_argument("model", metavar="MODEL", nargs=number, help=SPEC)
    batches = f"{SPEC}: an iterable of batches"
    parser.add_argument("loader", metavar="LOADER", nargs=number, help=batches)
    parser.add_argument("loss", metavar="LOSS", nargs="?", help=f"{SPEC}: a loss function, or what returns one")
    of_each = "so many samples of each class enter U; R takes all (default: 32)"
    parser.add_argument("--samples-per-class", type=positive, default=32, metavar="N", help=of_each)
    directions = "directions on which units are compared between classes (default: 128)"
    parser.add_argument("--projections", type=positive, default=128, metavar="N", help=directions)
    function = f"{SPEC}: a function of a batch, or what returns one:"
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--class-of", metavar="FUNCTION", help=f"{function} its labels, one per sample or place")
    without = "the targets are no classes: leave out U"
    classes.add_argument("--no-classes", dest="class_of", action="store_const", const=False, help=without)
    parser.add_argument("--samples-of", metavar="FUNCTION", help=f"{function} how many samples it holds")
    drawn = "of the directions, and of what the model or the loss draws at random (default: 0)"
    if seed:
        parser.add_argument("--seed", type=whole, default=0, help=drawn)
    taps = "score what the next layers read, or as in the paper what a layer returns"
    parser.add_argument("--recipe", choices=("default", "paper"), default="default", help=taps)
    kinds = ("signed", "per_sample", "per_class")
    added = "R of all samples: the sum, that of magnitudes, or of what each class adds up to (default: the recipe's)"
    parser.add_argument("--reduction", choices=kinds, help=added)
    pairs = "U over pairs of classes: the largest distance (default), or the mean of all"
    parser.add_argument("--pairs", choices=("max", "mean"), default="max", help=pairs)
    reduced = "what the loss function does over a batch (default: mean)"
    parser.add_argument("--loss-reduction", choices=("mean", "sum"), default="mean", help=reduced)
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
    walk = (
        "the whole model at once (default), or one block at a time, for what memory does not hold; of a folder it is "
    )
    parser.add_argument("--walk", choices=("whole", "blocks"), help=f"{walk}chosen by what is free")
    between = "where what passes between blocks lies meanwhile (default: in memory; of a folder beside OUT)"
    parser.add_argument("--walk-folder", type=path, metavar="FOLDER", help=between)


def add_planning(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tod", type=tolerance, metavar="TOLERANCE", help="tolerance of difference, 0 to 1")
    params = "share of all parameters that may stay: 0.5, or 50%%"
    budget.add_argument("--keep-params", type=share, metavar="SHARE", help=params)
    budget.add_argument("--keep-flops", type=share, metavar="SHARE", help="share of all FLOPs that may stay")
    budget.add_argument("--keep-latency", type=share, metavar="SHARE", help="share of the time that may stay")
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
    parser.add_argument("--max-remove", type=part, default=0.99, metavar="SHARE", help="at most this share of a group")
    parser.add_argument("--min-keep", type=positive, default=1, metavar="N", help="at least N units of every group")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="leave these groups alone")
    spread = (
        "how removal is spread over groups: by tolerance, in equal shares, by one threshold for all, by one of each "
    )
    spread += "group's own scale, or by one over what a unit costs (default: what suits the scores)"
    parser.add_argument("--allocation", choices=("tod", "uniform", "global", "normalized", "priced"), help=spread)
    signal = f"signal that orders the units, low goes first: {SIGNALS}, {OF_A_GROUP} (default: what suits the scores)"
    parser.add_argument("--removal", metavar="SIGNAL", help=signal)
    held = "signal that ToD holds against it, high stays; the same names (default: taylor)"
    parser.add_argument("--protect", metavar="SIGNAL", default="taylor", help=held)
