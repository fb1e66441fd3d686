"""The commands and their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fairkern as fk
from fairkern.cli import aside, commands, measuring
from fairkern.cli.arguments import divisors, number, path, positive, share, shares, whole, wholes, words
from fairkern.cli.completion import SHELLS
from fairkern.cli.folders import add_folder
from fairkern.cli.options import (
    COMPENSATIONS,
    OF_A_GROUP,
    SIGNALS,
    SPEC,
    add_biases,
    add_common,
    add_device,
    add_evaluate,
    add_model,
    add_out,
    add_planning,
    add_scoring,
    add_table,
    add_tracing,
)
from fairkern.cli.words import Parser

SHARED = ("score", "prune")  # what several processes of torchrun do together
CODES = """exit codes:
  0    done
  1    demo: the cut model is not what the masked model is; and what Python gives an exception of your own code
  2    something that was given cannot be used: one line on standard error says what, and nothing is written; also
       for fairkern by itself, which prints this
  130  interrupted (Ctrl-C); files are as they were, or whole
  141  nobody reads what is printed any more (fairkern ... | head -1)
  143  terminated, as 130
"""


def command_line() -> Parser:
    plain = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="fairkern", description="Structured pruning of PyTorch models.", epilog=CODES, formatter_class=plain
    )
    top.add_argument("--version", action="version", version=f"fairkern {fk.__version__}")
    subparsers = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(name: str, run: Any, summary: str) -> Parser:
        sub: Parser = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(run=run, shared=name in SHARED, parser=sub, top=top)
        return sub

    made = [*_first(command), *_stages(command), *_measures(command), *_folders(command), *_shells(command)]
    for sub in made:
        add_common(sub)
    return top


Command = Callable[[str, Any, str], Parser]


def _first(command: Command) -> Iterator[Parser]:
    demo = command("demo", aside.demo, "train, score, plan and cut two small networks on real handwritten digits")
    demo.add_argument("-o", "--out", type=path, default=Path("fairkern-demo"), help="folder for its files")
    demo.add_argument("--model", choices=("vgg", "resnet", "both"), default="both", help="which (default: both)")
    demo.add_argument("--keep-params", type=share, default=0.25, metavar="SHARE", help="default: 0.25")
    demo.add_argument("--epochs", type=positive, help="train for so many epochs instead of each model's own number")
    demo.add_argument("--seed", type=whole, default=0, help="of weights, batches and scores (default: 0)")
    yield demo
    yield command("info", aside.info, "versions, backends per operator and why one cannot run, threads, devices")


def _stages(command: Command) -> Iterator[Parser]:
    trace = command("trace", commands.trace, "print what can be cut from a model, and why the rest cannot")
    add_model(trace)
    trace.add_argument("inputs", metavar="INPUTS", help=f"{SPEC}: a tensor, a tuple or a dict")
    add_tracing(trace)
    proof = trace.add_mutually_exclusive_group()
    proven = "prove what may go on the whole model, or on a smaller one that its configuration builds"
    proof.add_argument("--verify", choices=("whole", "sibling"), default=True, help=proven)
    proof.add_argument(
        "--no-verify", dest="verify", action="store_const", const=False, help="skip the proof by running"
    )
    trace.add_argument("--time-limit", type=number, default=600.0, metavar="SECONDS", help="give up after this long")
    trace.add_argument("--seed", type=whole, default=0, help="of what the proof removes and runs on (default: 0)")
    add_device(trace)
    yield trace

    score = command("score", commands.score, "score every unit of a model in one pass over a loader")
    add_scoring(score)
    asked = "with --gram: plans from these scores will take at most this share of a group"
    score.add_argument("--max-remove", type=share, default=1.0, metavar="SHARE", help=asked)
    add_device(score)
    add_out(score, "file to write, for example scores.safetensors")
    yield score

    plan = command("plan", commands.plan, "turn scores into a plan for a budget, and say what it keeps")
    plan.add_argument("scores", metavar="SCORES", type=path, help="file written by `fairkern score`")
    add_planning(plan)
    add_table(plan, "--keep-latency is solved with it, and other plans say what time they leave")
    add_out(plan, "file to write, for example plan.json")
    yield plan

    apply = command("apply", commands.apply, "cut a model by a plan and save what is left")
    add_model(apply)
    apply.add_argument("plan", metavar="PLAN", type=path, help="file written by `fairkern plan`")
    folds = "fold in what goes; needs --scores, and sequential and joint look at --loader again (default: none)"
    apply.add_argument("--compensate", choices=COMPENSATIONS, default="none", help=folds)
    add_biases(apply)
    of = "file written by `fairkern score` (with --gram for all but mean)"
    apply.add_argument("--scores", metavar="SCORES", type=path, help=of)
    apply.add_argument("--loader", metavar="LOADER", help=f"{SPEC}: an iterable of batches")
    apply.add_argument("--loss", metavar="LOSS", help=f"{SPEC}: a loss function, or what returns one; read by joint")
    add_device(apply)
    add_out(apply, "folder for the weights and the plan")
    yield apply

    prune = command("prune", commands.prune, "score, plan, cut and save in one go")
    prune.also = "MODEL and LOADER (or --hf DIR and --data FILE)"
    add_scoring(prune, optional=True)
    add_planning(prune)
    add_table(prune, "--keep-latency goes by it (default: measured here)")
    add_tracing(prune)
    prune.add_argument("--compensate", choices=COMPENSATIONS, help="fold in what goes; default: the best to be had")
    add_biases(prune)
    steps = "cut, score again and cut, in so many steps towards the budget; then no scores are written"
    prune.add_argument("--iterations", type=positive, default=1, metavar="N", help=steps)
    add_evaluate(prune)
    further = "with --evaluate: also try these shares of what the budget is of, for a curve in the report: 0.9,0.7"
    prune.add_argument("--budgets", type=shares, metavar="SHARES", help=further)
    prune.add_argument("--html", type=path, metavar="FILE", help="write the report as a page, too")
    add_device(prune)
    add_folder(prune)
    add_out(prune, "folder for the weights, plan, report and scores")
    yield prune


def _measures(command: Command) -> Iterator[Parser]:
    told = "measure a model before and after a cut: parameters, FLOPs, latency; or print a report that was saved"
    report = command("report", measuring.report, told)
    subject = "report.json, to print it; a folder of `fairkern prune`, to print its report or, with INPUTS, to measure "
    subject += f"what was saved; or {SPEC}, the unpruned model"
    report.add_argument("subject", metavar="SUBJECT", help=subject)
    what = "of a MODEL: PLAN, a file or the folder whose weights count, and INPUTS; of a folder: INPUTS"
    what += f" ({SPEC}: what it is timed on)"
    report.add_argument("rest", metavar="PLAN INPUTS", nargs="*", default=[], help=what)
    whole_model = f"{SPEC}: the unpruned model of a folder, with its weights, to be measured too"
    report.add_argument("--model", metavar="MODEL", help=whole_model)
    called = "import and call what the folder says that its model is made by, whatever that is"
    report.add_argument("--trust", action="store_true", help=called)
    report.add_argument("--scores", metavar="SCORES", type=path, help="also show what was scored")
    add_evaluate(report)
    report.add_argument("-o", "--out", type=path, metavar="FILE", help="JSON file to write")
    report.add_argument("--html", type=path, metavar="FILE", help="page to write")
    shown = "picture to write: .png, .svg or .pdf; needs --scores"
    report.add_argument("--picture", type=path, metavar="FILE", help=shown)
    add_device(report)
    yield report

    sweep = command("sweep", measuring.sweep, "score once, and compare methods over budgets by a function of yours")
    add_scoring(sweep, seed=False)
    sweep.add_argument("--budgets", type=shares, required=True, metavar="SHARES", help="0.9,0.7,0.5 or 90%%,70%%,50%%")
    compared = (
        "with commas between them: default (as prune does), tod (the paper's), a signal that orders the units, an "
    )
    compared += "allocation and a signal (uniform-l1, global-taylor). "
    compared += f"Signals: {SIGNALS}, {OF_A_GROUP}"
    sweep.add_argument("--methods", type=words, required=True, metavar="NAMES", help=compared)
    by = "what the budgets are shares of (default: params)"
    sweep.add_argument("--by", choices=("params", "flops", "latency"), default="params", help=by)
    sweep.add_argument("--seeds", type=wholes, default=(0,), metavar="N,N", help="score anew for each (default: 0)")
    add_evaluate(sweep, required=True)
    folded = "fold in what goes, of every method and budget alike (default: least_squares, which takes no further pass "
    folded += "over the data; sequential and joint take some for every row)"
    sweep.add_argument("--compensate", choices=COMPENSATIONS, help=folded)
    sweep.add_argument("-o", "--out", type=path, metavar="FILE", help="CSV file to write")
    sweep.add_argument("--picture", type=path, metavar="FILE", help="curves to write: .png, .svg or .pdf")
    add_device(sweep)
    yield sweep

    latency = command("latency", measuring.latency, "measure layer by layer what `plan --keep-latency` is solved with")
    add_model(latency)
    latency.add_argument("inputs", metavar="INPUTS", help=f"{SPEC}: what it is timed on")
    multiples = "as of the plans that it is for (default: 1)"
    latency.add_argument("--round-to", type=divisors, default=1, metavar="N", help=multiples)
    latency.add_argument("--seed", type=whole, default=0, help="of the units that go (default: 0)")
    add_device(latency)
    add_out(latency, "file to write, for example latency.json; one that is there and of this model is read")
    yield latency


def _folders(command: Command) -> Iterator[Parser]:
    compact = command("compact", aside.compact, "cut a checkpoint by a plan, file by file, without its model")
    checkpoint = "folder with safetensors (shards and their index, or one file), or such a file"
    compact.add_argument("checkpoint", metavar="CHECKPOINT", type=path, help=checkpoint)
    of = "plan of that model, as `fairkern plan` writes it"
    compact.add_argument("--plan", type=path, required=True, metavar="PLAN", help=of)
    add_out(compact, "new folder; a run that was killed goes on when it is given again")
    yield compact

    llama = "write a folder of transformers, pruned or not, as a file for llama.cpp"
    export = command("export", aside.export, llama)
    folder = "config.json, safetensors and tokenizer: what `fairkern prune --hf` leaves, or save_pretrained"
    export.add_argument("folder", metavar="FOLDER", type=path, help=folder)
    of = "file to write, for example model.gguf"
    export.add_argument("--gguf", type=path, required=True, metavar="FILE", help=of)
    types = "of matrices; q8_0 packs 32 weights of a row (default: f16)"
    export.add_argument("--type", choices=("f32", "f16", "bf16", "q8_0"), default="f16", help=types)
    without = "leave the tokenizer out: token ids in, logits out"
    export.add_argument("--no-vocab", dest="vocab", action="store_false", help=without)
    yield export


def _shells(command: Command) -> Iterator[Parser]:
    completion = command("completion", aside.completion, "print what makes a shell complete commands and options")
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    yield completion
