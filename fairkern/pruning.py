"""Pruning from start to end: trace, score, plan and cut, in one step or in several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from fairkern import allocate, capture, compact, report, types
from fairkern.api import Plan, Report, Scores, check_model, cut, first_batch, head, score, summarise, trace
from fairkern.errors import BudgetError, InputError
from fairkern.timing import plan_latency

AT_ONCE = 4 * 2**30  # bytes of activations that sequential compensation may hold where nobody asked for it
_BUDGETS = ("keep_params", "keep_flops", "keep_latency")


def prune(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    tod: float | None = None,
    keep_params: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    latency: types.LatencyTable | None = None,
    iterations: int = 1,
    allocation: str | None = None,
    removal: allocate.Signal | None = None,
    protect: allocate.Signal = "taylor",
    round_to: int = 1,
    max_remove: float = 0.99,
    min_keep: int = 1,
    ignore: Iterable[str] = (),
    compensate: str | None = None,
    inplace: bool = False,
    **scoring: Any,
) -> tuple[nn.Module, Report]:
    """Trace, score, plan and cut: the smaller model and what was done.

    Budget, allocation and signals as in `Scores.plan`; `compensate` and `inplace` as in `apply`; every other
    keyword goes to `score`. Where the targets are no class labels (a language model's), nothing is asked for that
    compares classes, and no `class_of` is given, the U-score is left out (`class_of=False`). The report holds the plan
    (`Report.plan`), as `save_pruned` needs it.

    Args:
        keep_latency: the share of the model's time, on a few samples of the loader's first batch, that may be left.
            Plans are checked by timing what they leave (`plan_latency`).
        latency: from `latency_table` for these inputs; measured here where none is given.
        iterations: in how many steps. Every step cuts, compensates, and is traced and scored anew; the budgets of the
            steps lie in equal ratios (0.25 in two steps: a half, a quarter), all of them shares of the whole model,
            biases counted that compensation has added before. `max_remove` is spread over the steps likewise. The plan
            is one plan for the whole model; `Report.choices["steps"]` has what each step left.
        compensate: None takes "sequential" where it can be had: the loader can be iterated again, the model need not be
            cut in place, and what is held of all batches at one depth is expected to stay below 4 GiB; else
            "least_squares". `Report.choices["compensation"]` says which.

    Raises what these stages raise, and InputError: fewer than one step, several with `tod`, with `latency` or with a
    loader that can be iterated once only.
    Cost: `iterations` times a trace with its proof, a pass over the data and a cut.
    """
    check_model(model)
    target, keep = _target(tod, keep_params, keep_flops, keep_latency)
    _check_steps(iterations, target, keep, latency, loader)
    fits = (None, compact.Compensation.LEAST_SQUARES.value, compact.Compensation.SEQUENTIAL.value)
    if compensate is not None:
        capture.choose(compact.Compensation, "compensate", compensate)
    scoring.setdefault("gram", compensate in fits)
    tolerant = target == "tod" or allocation == "tod" or not scoring["gram"]
    compares = "wasserstein" in (removal, protect) or (removal is None and tolerant)
    again = not isinstance(loader, Iterator) and not inplace and scoring["gram"]
    first, loader = first_batch(loader)
    if "class_of" not in scoring and not compares and not capture.labelled(first):
        scoring["class_of"] = False
    run = _Run(
        model,
        head(first, model),
        target,
        keep,
        latency,
        iterations,
        {
            "allocation": allocation,
            "removal": removal,
            "protect": protect,
            "round_to": round_to,
            "min_keep": min_keep,
            "ignore": ignore,
        },
        max_remove,
    )
    stages = {"trace and score": 0.0, "plan": 0.0, "cut": 0.0}
    current, units = model, scoring.pop("units", None)
    for step in range(1, iterations + 1):
        started = time.perf_counter()
        units = units if units is not None else run.traced(current)
        scores = score(current, loader, loss_fn, units=units, **scoring)
        scored = time.perf_counter()
        plan = run.plan(current, scores, step)
        planned = time.perf_counter()
        if step == 1:
            run.measure()
        cutting = time.perf_counter()
        how = compensate or _compensation(scores, again)
        own = step > 1 and how != compact.Compensation.SEQUENTIAL.value  # a copy of ours
        current, corrected = cut(current, plan, how, scores, loader, inplace=inplace or own)
        units = None
        run.done.append((scores.units, plan))
        passed = (scored - started, planned - scored, time.perf_counter() - cutting)
        stages = {name: total + seconds for (name, total), seconds in zip(stages.items(), passed, strict=True)}
    before, after = run.latencies(current, inplace)
    return current, summarise(
        run.whole_plan(),
        scores=scores,
        title=f"{type(model).__name__}, pruned",
        before={"latency_ms": before},
        after={"latency_ms": after},
        stages=stages,
        corrected=corrected,
        small=current,
        compensation=how,
    )


def _compensation(scores: Scores, again: bool) -> str:
    """What is folded in where nobody said: layer after layer, if `again` and if there is room for it."""
    if not scores.moments:
        return compact.Compensation.NONE.value
    held = 2 * scores.provenance["predicted_bytes"]["layer"] * scores.provenance["batches"]
    sequential = again and held <= AT_ONCE
    return (compact.Compensation.SEQUENTIAL if sequential else compact.Compensation.LEAST_SQUARES).value


def _target(
    tod: float | None, keep_params: float | None, keep_flops: float | None, keep_latency: float | None
) -> tuple[str, Any]:
    """The name and value of what was asked; several or none are refused where plans are made, with all of them."""
    given = {"tod": tod, "keep_params": keep_params, "keep_flops": keep_flops, "keep_latency": keep_latency}
    named = [(name, value) for name, value in given.items() if value is not None]
    if len(named) != 1:
        what = " and ".join(name for name, _ in named) if named else "none of them"
        raise InputError(f"give exactly one of tod=, keep_params=, keep_flops=, keep_latency=; got {what}")
    return named[0]


def _check_steps(
    iterations: int, target: str, keep: Any, latency: types.LatencyTable | None, loader: Iterable[Any]
) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise InputError(f"iterations={iterations!r}; expected a whole number, at least 1")
    if iterations == 1:
        return
    if target not in _BUDGETS:
        raise InputError(
            f"iterations={iterations} needs a budget to approach in steps: give one of {_BUDGETS}, not tod"
        )
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(f"{target}={keep!r} is not a share; expected a number above 0, at most 1")
    if latency is not None:
        raise InputError("several iterations measure a latency table for the model of every step: leave out latency=")
    if isinstance(loader, Iterator):
        raise InputError(
            f"iterations={iterations} iterates the loader once a step, and this one can be iterated once only; "
            "give a re-iterable loader"
        )


@dataclass
class _Run:
    """What the steps of one call share."""

    model: nn.Module
    example: Any
    target: str
    keep: float
    latency: types.LatencyTable | None
    iterations: int
    options: dict[str, Any]
    max_remove: float

    def __post_init__(self) -> None:
        self.done: list[tuple[types.UnitMap, Plan]] = []
        self.before = 0.0
        self.spent = 1.0  # share of the whole model that the last step started from
        ignore = self.options["ignore"]
        if isinstance(ignore, Iterator):  # read by every plan
            self.options["ignore"] = list(ignore)

    def traced(self, current: nn.Module) -> types.UnitMap:
        """The map of a step's model; what a later one has that the first has not is left alone."""
        units = trace(current, self.example)
        return allocate.matching(self.done[0][0], self._plans(), units) if self.done else units

    def _plans(self) -> list[Plan]:
        return [plan for _, plan in self.done]

    def plan(self, current: nn.Module, scores: Scores, step: int) -> Plan:
        """The plan of a step: for its share of the whole model."""
        keep = self.keep
        if step > 1:
            self.spent = self._spent(current, scores.units)
            keep = min(1.0, self.keep ** (step / self.iterations) / self.spent)
        elif self.iterations > 1:
            keep = self.keep ** (1 / self.iterations)
        limit = self.max_remove if self.iterations == 1 else 1 - (1 - self.max_remove) ** (1 / self.iterations)
        options: dict[str, Any] = {**self.options, "max_remove": limit}
        try:
            return self._solved(current, scores, keep, options)
        except BudgetError as error:
            if self.iterations == 1:
                raise
            raise BudgetError(f"in step {step} of {self.iterations}, of what it starts from: {error}") from error

    def _solved(self, current: nn.Module, scores: Scores, keep: float, options: dict[str, Any]) -> Plan:
        if self.target != "keep_latency":
            return scores.plan(**{self.target: keep, **options})
        return plan_latency(scores, current, self.example, keep, latency=self.latency, **options)

    def _spent(self, current: nn.Module, units: types.UnitMap) -> float:
        """The share of the whole model's costs that a step starts from."""
        if self.target == "keep_latency":
            before, now = report.latencies_ms([self.model, current], self.example)
            return now / before
        name = f"{self.target.removeprefix('keep_')}_before"
        return _uncut(units)[name] / self.done[0][1].result[name]

    def measure(self) -> None:
        """The whole model's latency, before it may be cut in place."""
        self.before = report.latency_ms(self.model, self.example)

    def latencies(self, small: nn.Module, inplace: bool) -> tuple[float, float]:
        """Before and after, in turn where both models are there."""
        if inplace:
            return self.before, report.latency_ms(small, self.example)
        before, after = report.latencies_ms([self.model, small], self.example)
        return before, after

    def whole_plan(self) -> types.Plan:
        """One plan for the whole model, which says what every step left."""
        plans = self._plans()
        if len(plans) == 1:
            return plans[0]
        units, last = self.done[0][0], plans[-1]
        steps = [_left(units, plans[: k + 1], plans[k]) for k in range(len(plans))]
        request = {
            self.target: self.keep,
            **{key: value for key, value in last.request.items() if key != self.target},
            "max_remove": self.max_remove,
            "iterations": self.iterations,
        }
        result: dict[str, Any] = {"tolerance": last.result["tolerance"], "steps": steps}
        if self.target == "keep_latency":
            whole = plans[0].result["latency_before_ms"]
            share = self.spent * last.result["latency_after_ms"] / last.result["latency_before_ms"]
            result |= {"latency_before_ms": whole, "latency_after_ms": share * whole}
        return allocate.compose(units, plans, request, result)


def _left(units: types.UnitMap, plans: Sequence[Plan], plan: Plan) -> dict[str, Any]:
    """What a step left, by the costs of the whole model."""
    result = allocate.compose(units, plans).result
    names = ("params_after", "flops_after", "units_removed")
    return {**{name: result[name] for name in names}, "tolerance": plan.result["tolerance"]}


def _uncut(units: types.UnitMap) -> dict[str, Any]:
    return dict(allocate.build(units, [np.zeros(0, dtype=np.int64)] * len(units.groups)).result)
