"""One net: every method, budget and compensation, then the other packages at the same budgets."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

import fairkern as fk
from bench.quality import methods, targets
from bench.quality.catalogue import ADDS_UP, Entry, Pretrained
from bench.quality.further import FURTHER, healed, iterated
from bench.quality.rivals import RIVALS, Search, parameters
from bench.quality.rows import Row
from bench.quality.tasks.task import Task

KEEPS = (0.9, 0.75, 0.5, 0.35, 0.2, 0.1, 0.05)
COMPENSATIONS = ("none", "mean", "least_squares", "sequential", "joint", *FURTHER)
JOINTLY = (
    "residual, global",
    "residual per parameter, global",
)  # the default, without prices and with: more is tried with it
RECALIBRATED = " + BatchNorm"  # added to a compensation's name: statistics anew
CLOSELY = (  # tried with means and with recalibration besides
    "residual, global",
    "residual per parameter, global",
    "FAIR ToD, consumer taps",
    "random, uniform",
)


@dataclass(frozen=True)
class Grid:
    """What to run."""

    keeps: Sequence[float] = KEEPS
    methods: Sequence[methods.Method] = methods.METHODS
    compensations: Sequence[str] = COMPENSATIONS
    rivals: bool = True


@dataclass
class Outcome:
    """Rows, and what could not be run with the reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str | int]] = field(default_factory=list)


def run(entry: Entry | Pretrained, seed: int, grid: Grid) -> Outcome:
    """Train or load, score once, cut and measure."""
    model, task = entry.load(seed)
    bench = _Bench(entry.name, seed, model, task)
    grid = replace(grid, keeps=sorted({*grid.keeps, *targets.budgets(entry.name)}, reverse=True))
    outcome = Outcome()
    for method in grid.methods:
        outcome.rows += bench.own(method, grid)
    if grid.rivals:
        for rival in RIVALS:
            try:
                cuts = Search(model, rival.prepare(model, task))
                for keep in grid.keeps:
                    outcome.rows += bench.rival(rival.name, cuts, keep)
            except Exception as error:  # whatever another package raises is a finding
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                outcome.left_out.append({"model": entry.name, "seed": seed, "method": rival.name, "reason": reason})
    return outcome


class _Bench:
    """A trained net, its measure before the cut and its scores."""

    def __init__(self, name: str, seed: int, model: nn.Module, task: Task) -> None:
        self.name, self.seed, self.model, self.task = name, seed, model, task
        self.before = task.measure(model)
        self.scores = methods.score(model, task, seed)
        self.cuttable = methods.cuttable(self.scores.units)
        self.whole = parameters(model)
        self.has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())

    def budget(self, keep: float) -> float:
        """Share of the whole model."""
        return 1.0 - (1.0 - keep) * self.cuttable

    def own(self, method: methods.Method, grid: Grid) -> Iterator[Row]:
        for keep in grid.keeps:
            plan = methods.plan(self.scores, method, self.budget(keep))
            for compensation in grid.compensations:
                if compensation == "mean" and method.name not in CLOSELY:
                    continue
                if compensation == "joint" and method.name not in JOINTLY:
                    continue
                if compensation in FURTHER:
                    if keep in targets.budgets(self.name) and method.name == JOINTLY[self.name in ADDS_UP]:
                        yield self.further(plan, method.name, compensation, keep)
                    continue
                started = time.perf_counter()
                data = {"loader": self.task.calibration, "loss_fn": _nearness(self.task)}
                small = fk.apply(self.model, plan, compensate=compensation, scores=self.scores, **data)
                yield self.row(small, method.name, compensation, keep, time.perf_counter() - started)
                if method.name in CLOSELY and compensation not in ("mean", "joint"):
                    yield from self.recalibrated(small, method.name, compensation, keep)

    def further(self, plan: fk.Plan, method: str, how: str, keep: float) -> Row:
        """At a target's budget, by the default: what several cuts leave, or training after one."""
        started = time.perf_counter()
        if how == "iterated":
            small = iterated(self.model, self.task, self.budget(keep))
        else:
            data = {"loader": self.task.calibration, "loss_fn": self.task.loss}
            small = fk.apply(self.model, plan, compensate="sequential", scores=self.scores, **data)
            small = healed(small, self.model, self.task, self.seed)
        return self.row(small, method, how, keep, time.perf_counter() - started)

    def recalibrated(self, small: nn.Module, method: str, compensation: str, keep: float) -> Iterator[Row]:
        """The cut net with BatchNorm statistics of the calibration data, if it has BatchNorm."""
        if self.has_batch_norm:
            started = time.perf_counter()
            again = copy.deepcopy(small)
            fk.recalibrate(again, self.task.calibration)
            yield self.row(again, method, compensation + RECALIBRATED, keep, time.perf_counter() - started)

    def rival(self, name: str, search: Search, keep: float) -> list[Row]:
        started = time.perf_counter()
        small = search(self.budget(keep))
        if small is None:
            raise RuntimeError(f"no cut of it keeps {keep:.0%} or less of what can be cut")
        first = self.row(small, name, "none", keep, time.perf_counter() - started)
        return [first, *self.recalibrated(small, name, "none", keep)]

    def row(self, small: nn.Module, method: str, compensation: str, keep: float, seconds: float) -> Row:
        """`seconds`: of the cut alone."""
        return Row(
            self.name, self.seed, self.task.name, method, compensation, keep, parameters(small) / self.whole,
            self.cuttable, self.task.metric, self.before, self.task.measure(small), seconds,
        )  # fmt: skip


def _nearness(task: Task) -> Callable[[Any, Any], Tensor]:
    """What says how near two outputs are: the loss, but for embeddings, whose loss is linear."""
    return task.loss if task.metric != "cosine" else lambda embedding, targets: embedding.square().sum(1).mean()
