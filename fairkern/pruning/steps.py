"""The steps of one call of `prune`: each scores, plans and cuts what the one before has left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from fairkern import report, types
from fairkern.allocate import Planning
from fairkern.api import score, trace
from fairkern.capture.memory import SPARE, within
from fairkern.compensate import Compensation
from fairkern.compensate.cut import Cut
from fairkern.compensate.intercepts import Biases
from fairkern.errors import BudgetError, InputError
from fairkern.evaluating import Evaluate, measured
from fairkern.plans.build import build
from fairkern.plans.compose import compose, matching
from fairkern.plans.removals import nothing
from fairkern.plans.serving import constraints, serving
from fairkern.prove import proof_bytes
from fairkern.pruning.counted import SHARE, counted
from fairkern.pruning.cutter import Cutter
from fairkern.pruning.rows import in_order, row
from fairkern.ranks import ALONE, Ranks
from fairkern.ranks.digests import digest
from fairkern.results import Plan, Report, Scores
from fairkern.summary import summarise
from fairkern.timing import plan_latency
from fairkern.types import Told, silent

T = TypeVar("T")

AT_ONCE = 4 * 2**30  # bytes of activations that sequential compensation may hold where nobody asked for it


@dataclass(frozen=True)
class Asked:
    """What one call of `prune` was asked for, checked."""

    target: str
    keep: Any  # a share, a tolerance, or whole numbers by kind of unit
    latency: types.LatencyTable | None
    iterations: int
    planning: dict[str, Any]
    scoring: dict[str, Any]
    tracing: dict[str, Any]
    method: Compensation | None  # None: the best that can be had
    biases: Biases
    again: bool  # whether the data may be looked at again, beside the model as it was
    inplace: bool
    evaluate: Evaluate | None = None
    budgets: tuple[float, ...] = ()  # further ones, which are tried beside the one that is kept


@dataclass
class Run:
    """The steps of one call, and what they share."""

    model: nn.Module
    example: Any
    loader: Iterable[Any]
    loss_fn: Callable[[Any, Any], Tensor] | None
    asked: Asked
    ranks: Ranks = ALONE
    told: Told = silent
    current: nn.Module = field(init=False)
    scores: Scores = field(init=False)  # of the last step
    method: Compensation = field(init=False)
    cut: Cut = field(init=False)  # of the last step
    flags: list[types.ConfigChange] = field(init=False, default_factory=list)  # that compensation set, in all steps
    unplaced: list[str] = field(init=False, default_factory=list)  # biases that the configuration has no field for
    done: list[tuple[types.UnitMap, Plan]] = field(init=False, default_factory=list)
    stages: dict[str, float] = field(init=False)
    curve: list[dict[str, Any]] = field(init=False, default_factory=list)  # of the further budgets
    measures: dict[str, float] = field(init=False, default_factory=dict)  # of the whole model
    before: dict[str, Any] = field(init=False, default_factory=dict)  # timing of the whole model, if cut in place
    took: float = field(init=False, default=0.0)  # seconds of the last cut
    spent: float = field(init=False, default=1.0)  # share of the whole model that the last step started from

    def __post_init__(self) -> None:
        self.current = self.model
        self.stages = {"trace and score": 0.0, "plan": 0.0, "cut": 0.0}
        self.stages |= {"further budgets": 0.0} if self.asked.budgets else {}
        self.stages |= {"evaluate": 0.0} if self.asked.evaluate is not None else {}
        self.measures = self._evaluated(self.model)  # before all else, so that what is wrong with it shows at once

    def step(self, number: int, units: types.UnitMap | None) -> None:
        """Score what the step before has left (traced here, unless its map is known), plan and cut."""
        times = [time.perf_counter()]
        tell = self._tell(number)
        units = self._traced(tell) if units is None else units
        scoring = dict(self.asked.scoring)
        if self.asked.iterations > 1 and not isinstance(scoring.get("keep_moments", True), bool):
            scoring["keep_moments"] = os.path.join(scoring["keep_moments"], f"step-{number}")
        how: dict[str, Any] = {"units": units, "ranks": self.ranks, "progress": tell}
        self.scores = score(self.current, self.loader, self.loss_fn, **how, **scoring)
        times.append(time.perf_counter())
        tell(0, None, "planning")
        plan = self._plan(number)
        further = {share: self._solved(share, dict(self.asked.planning)) for share in self.asked.budgets}
        self.ranks.agree("prune()", {"the plan": digest(plan)} if self.ranks.several else {})
        times.append(time.perf_counter())
        if number == 1 and self.asked.inplace:  # else both are timed in turn, at the end
            self.before = self._measured(lambda: report.timed(self.model, self.example, least=report.FEW))
        for k, (share, other) in enumerate(further.items()):
            tell(k, len(further), "further budgets")
            self._try(share, other)
        cutting = time.perf_counter()
        tell(0, None, "cutting")
        self._cut(plan, number)
        self.done.append((self.scores.units, plan))
        self.took = time.perf_counter() - cutting
        passed = (times[1] - times[0], times[2] - times[1], self.took)
        for name, seconds in zip(self.stages, passed, strict=False):
            self.stages[name] += seconds

    def report(self) -> Report:
        """What was done, with one plan for the whole model, and its latency beside that of what is left."""
        plan, after = self._whole_plan(), self._evaluated(self.current)
        if self.asked.budgets:
            self.curve.append(self._row(plan, self.asked.keep, self.current, after, self.took))
        made = summarise(
            plan,
            scores=self.scores,
            title=f"{type(self.model).__name__}, pruned",
            before=self.measures,
            after=after,
            curve=in_order(self.curve),
            timing=self._timing(),
            environment=self._measured(lambda: report.environment(self._seeds)),
            stages=self._measured(lambda: self.stages),
            corrected=self.cut.corrections,
            small=self.current,
            compensation=self.method.value,
            biases=self.cut.biases,
            flags=self.flags,
            unplaced=self.unplaced,
        )
        more: dict[str, Any] = {}
        if self.asked.tracing["depth"]:  # which is asked of the trace, and so of no plan
            more["request"] = {**made.choices["request"], "depth": True}
        if self.cut.divergence is not None:
            more["divergence"] = list(self.cut.divergence)
        return replace(made, choices={**made.choices, **more})

    def _tell(self, number: int) -> Told:
        """What a step tells, which says of several which one it is."""
        if self.asked.iterations == 1:
            return self.told
        return lambda done, total, stage: self.told(done, total, f"step {number}: {stage}")

    def _traced(self, tell: Told) -> types.UnitMap:
        """The map of a step's model; what a later one has that the first has not is left alone."""
        least = max(1, proof_bytes(self.current) - SPARE)
        if 0 < self._budget < least:
            raise InputError(
                f"memory_budget={self._budget:,} bytes is too small for the proof of what may be cut. The least that "
                f"would do is {least:,} (none, with units=trace(model, inputs, verify=False))"
            )
        tell(0, None, "tracing")
        with within(self._budget or None, "tracing"):
            units = trace(self.current, self.example, **self.asked.tracing)
        return matching(self.done[0][0], self._plans(), units) if self.done else units

    def _plans(self) -> list[Plan]:
        return [plan for _, plan in self.done]

    def _plan(self, number: int) -> Plan:
        """The plan of a step: for its share of the whole model."""
        keep, options, steps = self.asked.keep, dict(self.asked.planning), self.asked.iterations
        if number > 1:
            self.spent = self._spent()
            keep = min(1.0, keep ** (number / steps) / self.spent)
        elif steps > 1:
            keep = keep ** (1 / steps)
        if steps > 1:
            options["max_remove"] = 1 - (1 - self._max_remove) ** (1 / steps)
        try:
            return self._solved(keep, options)
        except BudgetError as error:
            if steps == 1:
                raise
            raise BudgetError(f"in step {number} of {steps}, of what it starts from: {error}") from error

    @property
    def _max_remove(self) -> float:
        return Planning(**self.asked.planning).max_remove

    def _solved(self, keep: float, options: dict[str, Any]) -> Plan:
        if self.asked.target != "keep_latency":
            own = {"latency": self.asked.latency, **options}

            def solve(share: float) -> Plan:
                return self.scores.plan(**{self.asked.target: share, **own})

            if self.asked.target != SHARE:
                return solve(keep)
            folded = self.asked.method or (Compensation.LEAST_SQUARES if self.scores.moments else Compensation.NONE)
            return counted(solve, keep, self.current, self.scores, folded, self.asked.biases)
        times = partial(plan_latency, self.scores, self.current, self.example, keep, latency=self.asked.latency)
        return self._measured(lambda: times(ranks=False, **options))

    def _measured(self, measure: Callable[[], T]) -> T:
        """What is measured on a clock: by one process, while the others rest."""
        return self.ranks.told("a measure of time", measure)

    def _spent(self) -> float:
        """The share of the whole model's costs that a step starts from."""
        if self.asked.target == "keep_latency":
            before, now = self._measured(lambda: report.latencies_ms([self.model, self.current], self.example))
            return now / before
        name = f"{self.asked.target.removeprefix('keep_')}_before"
        uncut = build(self.scores.units, nothing(self.scores.units))
        return uncut.result[name] / self.done[0][1].result[name]

    def _cut(self, plan: Plan, number: int) -> None:
        self.method = self.asked.method or self._best_method(plan)
        own = number > 1 and not self.method.compares  # a copy of ours
        self.cut = self._made(plan, self.method, inplace=self.asked.inplace or own)
        self.current = self.cut.model
        self.flags += self.cut.config
        self.unplaced += self.cut.unplaced

    def _made(self, plan: Plan, method: Compensation, *, inplace: bool) -> Cut:
        return self._cutter.cut(self.current, plan, self.scores, method, inplace=inplace)

    def _try(self, share: float, plan: Plan) -> None:
        """A further budget: cut, compensated and evaluated as the one that is kept, and then gone."""
        started = time.perf_counter()
        small = self._made(plan, self.asked.method or self._best_method(plan), inplace=False).model
        took = time.perf_counter() - started
        self.stages["further budgets"] += took
        self.curve.append(self._row(plan, share, small, self._evaluated(small), took))

    def _row(
        self, plan: types.Plan, share: float, small: nn.Module, measures: dict[str, float], took: float
    ) -> dict[str, Any]:
        by, ms = self.asked.target, None
        if by == "keep_latency":
            ms = self._measured(lambda: report.timed(small, self.example, least=report.FEW))["before"]["p50"]
        took, seed = self._measured(lambda: took), int(self.scores.provenance["seed"])
        return row(plan, small, seed=seed, budget=share, by=by, seconds=took, measures=measures, latency_ms=ms)

    def _evaluated(self, model: nn.Module) -> dict[str, float]:
        """What the caller's function gives, by name; by the first process, while the others rest."""
        evaluate = self.asked.evaluate
        if evaluate is None:
            return {}
        self.told(len(self.curve), None, "evaluating")
        started = time.perf_counter()
        found = self._measured(lambda: measured(evaluate, model))
        self.stages["evaluate"] += time.perf_counter() - started
        return found

    @property
    def _budget(self) -> int:
        return self.asked.scoring.get("memory_budget") or 0

    @property
    def _cutter(self) -> Cutter:
        samples_of = self.asked.scoring.get("samples_of")
        how = (samples_of, self._budget, self.asked.biases, self.ranks, self._tell(len(self.done) + 1))
        return Cutter(self.model, self.loader, self.loss_fn, *how)

    def _best_method(self, plan: Plan) -> Compensation:
        """What is folded in where nobody said: layer after layer, if that may be and there is room for it."""
        if not self.scores.moments:
            return Compensation.NONE
        known = self.scores.provenance
        held = 2 * known["predicted_bytes"]["layer"] * known["samples" if known["singly"] else "batches"]
        sequential = self.asked.again and held <= AT_ONCE and not known.get("keeps")
        over = self._cutter.over(self.current, plan, self.scores, Compensation.SEQUENTIAL) if sequential else 0
        fits = sequential and over <= 0
        return Compensation.SEQUENTIAL if fits else Compensation.LEAST_SQUARES

    def _timing(self) -> dict[str, Any]:
        """How long passes take before and after, in turn where both models are there."""
        self.told(0, None, "measuring latency")
        if self.asked.inplace:
            after = self._measured(lambda: report.timed(self.current, self.example, least=report.FEW))
            return report.one_after_the_other(self.before, after)
        models = self.model, self.current
        return self._measured(lambda: report.compared(*models, self.example, least=report.FEW))

    @property
    def _seeds(self) -> dict[str, int]:
        return {"scoring": int(self.scores.provenance["seed"])}

    def _whole_plan(self) -> types.Plan:
        """One plan for the whole model, which says what every step left."""
        plans = self._plans()
        if len(plans) == 1:
            return plans[0]
        units, last = self.done[0][0], plans[-1]
        steps = [_left(units, plans[: k + 1], plans[k]) for k in range(len(plans))]
        request = {
            self.asked.target: self.asked.keep,
            **{key: value for key, value in last.request.items() if key != self.asked.target},
            "max_remove": self._max_remove,
            "iterations": self.asked.iterations,
        }
        result: dict[str, Any] = {"tolerance": last.result["tolerance"], "steps": steps}
        if self.asked.target == "keep_latency":
            whole = plans[0].result["latency_before_ms"]
            share = self.spent * last.result["latency_after_ms"] / last.result["latency_before_ms"]
            result |= {"latency_before_ms": whole, "latency_after_ms": share * whole}
        served = constraints(units, serving(request["serve"]))
        return compose(units, plans, request, result, served.said(request["serve"]))


def _left(units: types.UnitMap, plans: Sequence[Plan], plan: Plan) -> dict[str, Any]:
    """What a step left, by the costs of the whole model."""
    result = compose(units, plans).result
    names = ("params_after", "flops_after", "units_removed")
    return {**{name: result[name] for name in names}, "tolerance": plan.result["tolerance"]}
