"""`sweep` over six budgets and three methods against one scoring pass and the evaluations, in turn, in one process.

Beside those, a sweep plans, cuts and compensates eighteen models. The rival scores once, with what the sweep's methods
and its compensation take, and evaluates the whole model and the same eighteen, which lie there ready. A cut takes as
long whatever the data (compensated, a tenth of a second for ResNet-18), so the more data, the less it counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from bench._compare import Comparison, compare
from bench.models import images, resnet18, seeded
from bench.test_latency import vit
from fairkern.demo.data import Batches

MOST = 1.3  # a sweep's time over that of a scoring pass and the evaluations
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
METHODS = ("residual", "tod", "uniform-l1")


@dataclass(frozen=True)
class Case:
    """`samples` of `size` pixels are scored, and as many evaluated."""

    name: str
    build: Callable[[], nn.Module]
    samples: int
    size: int
    batch: int = 32

    def data(self) -> Batches:
        x, y = images(self.samples, 10, 3, self.size)
        return list(zip(x.split(self.batch), y.split(self.batch), strict=True))


CASES = {
    "resnet18": Case("ResNet-18", lambda: resnet18(10), 512, 64),
    "vit": Case("ViT 6 × 192", vit, 512, 64),
}


@dataclass
class Work:
    """Both sides of a comparison. `sweeps`: what those that ours has made say of themselves."""

    model: nn.Module
    batches: Batches
    compensate: str

    def __post_init__(self) -> None:
        self.sweeps: list[fk.Sweep] = []
        self.units = fk.trace(self.model, self.batches[0][0][:2])
        self._held: list[nn.Module] = [self.model]
        self.swept(keep=True)

    def swept(self, *, keep: bool = False) -> fk.Sweep:
        """A sweep of a map that is there, as it is for the rival, which is given what is left where we `keep` it."""

        def evaluate(model: nn.Module) -> Tensor:
            if keep and model is not self.model:
                self._held.append(model)
            return self.accuracy(model)

        made = fk.sweep(
            self.model,
            self.batches,
            nn.functional.cross_entropy,
            budgets=BUDGETS,
            methods=METHODS,
            evaluate=evaluate,
            compensate=self.compensate,
            units=self.units,
            progress=False,
        )
        self.sweeps.append(made)
        return made

    def parts(self) -> list[float]:
        """One scoring, and the evaluations."""
        self.scored()
        return [fk.measured(self.accuracy, model)["evaluation"] for model in self._held]

    def scored(self) -> fk.Scores:
        loss = nn.functional.cross_entropy
        kept = self.compensate != "none"
        return fk.score(self.model, self.batches, loss, units=self.units, gram=True, keep_moments=kept, progress=False)

    def accuracy(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            hits = [(model(x).argmax(1) == y).sum() for x, y in self.batches]
        return torch.stack(hits).sum() / sum(len(y) for _, y in self.batches)


def against_its_parts(case: Case, compensate: str, rounds: int) -> tuple[Comparison, dict[str, Any]]:
    """The comparison, and what else a row says: seconds of a sweep's stages, the medians of the timed ones."""
    work = Work(seeded(case.build), case.data(), compensate)
    (first,) = work.sweeps
    expected = [row["evaluation"] for row in first.rows]
    assert work.parts()[1:] == expected, "the rival evaluates other models"
    compared = compare(work.swept, work.parts, rounds=rounds, warmup=0)  # each has run once
    timed = work.sweeps[1:]
    stages = {name: statistics.median(made.stages[name] for made in timed) for name in timed[0].stages}
    return compared, {"stages_s": stages, "rows": len(expected)}


@pytest.mark.parametrize("compensate", ["least_squares", "none"])
@pytest.mark.parametrize("name", CASES)
def test_against_its_parts(benchmark: Any, record: Callable[..., None], name: str, compensate: str) -> None:
    case = CASES[name]
    comparison, more = against_its_parts(case, compensate, rounds=3)
    bound = comparison.bound("relative_cost", MOST, at_least=False)
    record(
        benchmark,
        comparison,
        op="sweep",
        shape=f"{case.name}, {case.samples} images of {case.size} pixels, {len(METHODS)} methods",
        compensate=compensate,
        rival="one scoring pass and the same evaluations",
        **more,
        **bound,
    )
    benchmark.pedantic(lambda: None, rounds=1)
    assert bound["met"]
