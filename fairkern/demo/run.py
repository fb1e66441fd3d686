"""The demo from end to end: train, trace, score, plan, cut, check, measure, write. Public API only."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import fairkern as fk
from fairkern.demo.data import Digits, digits, missing
from fairkern.demo.models import BUILDERS
from fairkern.demo.table import Outcome, table
from fairkern.demo.train import EPOCHS, accuracy, train

TITLES = {"vgg": "VGG-style network", "resnet": "ResNet-style network"}
TUNING_EPOCHS = 3


@dataclass(frozen=True)
class Options:
    """What `fairkern demo` can be told. `epochs` replaces each model's own number of training epochs."""

    out: Path
    models: tuple[str, ...] = ("vgg", "resnet")
    keep_params: float = 0.25
    seed: int = 0
    quiet: bool = False
    epochs: int | None = None


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run(options: Options, console: Console | None = None) -> dict[str, Outcome]:
    """Run the demo for each of `options.models` and write its files under `options.out/<model>/`.

    Raises `FairkernError` where scikit-learn or matplotlib is missing, before anything is trained.
    """
    console = console or Console(quiet=options.quiet)
    require()
    data = digits()
    console.print(
        f"Handwritten digits: {len(data.train_x)} images to train and calibrate on, {len(data.test_x)} to test on."
    )
    return {name: _one(name, options, data) for name in options.models}


def show(outcomes: dict[str, Outcome], options: Options, console: Console) -> None:
    """Print the table, the checks and what was written."""
    console.print(table(outcomes))
    for name, outcome in outcomes.items():
        console.print(
            f"{name}: the bare cut and the masked model agree to {outcome.difference:.0e} of the largest logit "
            f"(test accuracy {outcome.report.after['accuracy_cut']:.2%} and {outcome.masked_accuracy:.2%}); "
            f"the compensated model, reloaded from disk, gives "
            f"{'the same' if outcome.reload_equal else 'DIFFERENT'} logits."
        )
    console.print(
        f"One shot is the cut with what the removed units carried folded into the weights that stay, no training; bare "
        f"is the cut alone; fine-tuned is {TUNING_EPOCHS} epochs of training after one shot."
    )
    files = "report.json, plan.json, scores.safetensors, picture.png, pruned/ and finetuned/"
    folders = " and ".join(f"{options.out}/{name}/" for name in outcomes)
    console.print(f"Written to {folders}: {files}", markup=False)


def _one(name: str, options: Options, data: Digits) -> Outcome:
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    model = BUILDERS[name](options.seed)
    batches, tests = data.train_batches(), data.test_batches()
    example = data.test_x[:1]

    with clock.stage("train"):
        _train(f"Training the {TITLES[name]}", model, options.epochs or EPOCHS[name], options, data)
    before = accuracy(model, tests)
    with clock.stage("trace"):
        units = fk.trace(model, example)
    with clock.stage("score"):
        scores = fk.score(
            model, batches, nn.CrossEntropyLoss(), units=units, seed=options.seed, gram=True, progress=not options.quiet
        )
    with clock.stage("plan"):
        plan = scores.plan(keep_params=options.keep_params)
    with clock.stage("cut"):
        small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=batches)

    with clock.stage("check"):
        with plan.masked(model):
            masked_accuracy, masked_logits = accuracy(model, tests), _logits(model, data.test_x)
        bare = fk.apply(model, plan)
        after, cut, logits = accuracy(small, tests), accuracy(bare, tests), _logits(bare, data.test_x)
        fk.save_pruned(small, plan, folder / "pruned")
        reloaded = fk.load_pruned(BUILDERS[name](options.seed + 1), folder / "pruned").eval()
        reload_equal = torch.equal(_logits(reloaded, data.test_x), _logits(small, data.test_x))

    difference = float((logits - masked_logits).abs().max() / masked_logits.abs().max())
    with clock.stage("measure"):
        latency = fk.latency(model, example), fk.latency(small, example)
    with clock.stage("fine-tune"):
        _train(f"Fine-tuning the cut {TITLES[name]}", small, TUNING_EPOCHS, options, data)
    fk.save_pruned(small, plan, folder / "finetuned")
    report = fk.summarise(
        plan,
        scores=scores,
        title=f"{TITLES[name]} on digits",
        before={"accuracy": before, "latency_ms": latency[0]},
        after={
            "accuracy": after,
            "accuracy_cut": cut,
            "accuracy_finetuned": accuracy(small, tests),
            "latency_ms": latency[1],
        },
        stages=clock.seconds,
        compensation="sequential",
    )
    scores.save(folder / "scores.safetensors")
    plan.save(folder / "plan.json")
    report.save(folder / "report.json")
    fk.picture(scores, plan, folder / "picture.png")
    return Outcome(report, masked_accuracy, difference, reload_equal)


def _train(what: str, model: nn.Module, epochs: int, options: Options, data: Digits) -> None:
    with _progress(what, epochs, options.quiet) as advance:
        train(model, data.train_x, data.train_y, epochs, options.seed, on_epoch=lambda epoch: advance())


@contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def require() -> None:
    """Raises `FairkernError` where a package of the `demo` extra cannot be imported."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise fk.FairkernError(missing(package, error)) from error
