"""The demo from end to end: train, trace, score, plan, cut, check, measure, write. Public API only."""

from __future__ import annotations

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
from fairkern.demo.train import EPOCHS, accuracy, train

TITLES = {"vgg": "VGG-style CNN on handwritten digits", "resnet": "ResNet-style CNN on handwritten digits"}
LATENCY_BATCH = 64


@dataclass(frozen=True)
class Options:
    """What `fairkern demo` can be told. `epochs` shortens the training (for tests)."""

    out: Path
    models: tuple[str, ...] = ("vgg", "resnet")
    keep_params: float = 0.5
    seed: int = 0
    quiet: bool = False
    epochs: int | None = None


@dataclass(frozen=True)
class Outcome:
    """One model's report and the three checks on the cut model."""

    report: fk.Report
    masked_accuracy: float
    masked_difference: float  # largest |logit| difference, cut against masked, relative to the largest logit
    reload_equal: bool


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
    _require_matplotlib()
    data = digits()
    console.print(
        f"Handwritten digits: {len(data.train_x)} images to train and calibrate on, {len(data.test_x)} to test on."
    )
    return {name: _one(name, options, data, console) for name in options.models}


def _one(name: str, options: Options, data: Digits, console: Console) -> Outcome:
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    model = BUILDERS[name](options.seed)
    batches, tests = data.train_batches(), data.test_batches()
    example = data.test_x[:LATENCY_BATCH]

    with clock.stage("train"):
        _train(name, model, options, data, console)
    before = accuracy(model, tests)
    with clock.stage("trace"):
        units = fk.trace(model, example[:2])
    with clock.stage("score"):
        scores = fk.score(
            model, batches, nn.CrossEntropyLoss(), units=units, seed=options.seed, progress=not options.quiet
        )
    with clock.stage("plan"):
        plan = scores.plan(keep_params=options.keep_params)
    with clock.stage("cut"):
        small = fk.apply(model, plan)

    with clock.stage("check"):
        with plan.masked(model):
            masked_accuracy, masked_logits = accuracy(model, tests), _logits(model, data.test_x)
        after, logits = accuracy(small, tests), _logits(small, data.test_x)
        fk.save_pruned(small, plan, folder / "pruned")
        reloaded = fk.load_pruned(BUILDERS[name](options.seed + 1), folder / "pruned").eval()
        reload_equal = torch.equal(_logits(reloaded, data.test_x), logits)

    report = fk.report(
        model,
        small,
        plan,
        scores=scores,
        example_inputs=example,
        before={"accuracy": before},
        after={"accuracy": after},
        stages=clock.seconds,
    )
    scores.save(folder / "scores.safetensors")
    plan.save(folder / "plan.json")
    report.save(folder / "report.json")
    report.picture(folder / "picture.png")
    difference = float((logits - masked_logits).abs().max() / masked_logits.abs().max())
    return Outcome(report, masked_accuracy, difference, reload_equal)


def _train(name: str, model: nn.Module, options: Options, data: Digits, console: Console) -> None:
    epochs = options.epochs or EPOCHS[name]
    with _progress(f"Training the {name}", epochs, console, options.quiet) as advance:
        train(model, data.train_x, data.train_y, epochs, options.seed, on_epoch=lambda epoch: advance())


@contextmanager
def _progress(what: str, total: int, console: Console, quiet: bool) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise fk.FairkernError(missing("matplotlib", error)) from error
