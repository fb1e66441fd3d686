"""Budgets and methods compared on one model: scored once for each seed, then planned, cut and evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from fairkern import capture, report, types
from fairkern.allocate import PlanningOptions, Target, refuse_unknown
from fairkern.api import score, trace
from fairkern.capture.batches import first_batch, head
from fairkern.checks import RUN, check_data, check_model, check_more
from fairkern.compensate import Compensation
from fairkern.compensate.intercepts import Biases
from fairkern.errors import BudgetError, InputError
from fairkern.evaluating import EXPECTED, Evaluate, measured
from fairkern.model.in_use import at_work
from fairkern.model.sharded import processes_of
from fairkern.model.wrappers import check_unwrapped
from fairkern.options import SEEDS, UNITS, choose, flag, function, instance, iterable, names, short, whole
from fairkern.plans.build import build
from fairkern.plans.removals import nothing
from fairkern.prove import check_values
from fairkern.pruning.counted import counted
from fairkern.pruning.cutter import Cutter
from fairkern.pruning.options import PruningOptions, check_method, check_scoring, check_traced, fit_together
from fairkern.pruning.rows import row, shares
from fairkern.ranks import Ranks, RanksLike, entered, shared
from fairkern.results import Plan, Scores, UnitMap
from fairkern.surroundings import stage
from fairkern.sweeping.methods import Method, methods_of
from fairkern.sweeping.result import Sweep
from fairkern.timing import latency_table, plan_latency

__all__ = ["Sweep", "sweep"]

_OWN = ("budgets", "methods", "evaluate", "by", "seeds", "compensate", "biases", "more", "unused", "depth", "on_row")


@stage
@shared
def sweep(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    budgets: Iterable[float],
    methods: Any,
    evaluate: Evaluate,
    by: str = "keep_params",
    seeds: Iterable[int] = (0,),
    compensate: str = "least_squares",
    biases: str | bool = "auto",
    more: Sequence[Any] = (),
    unused: Iterable[str] = (),
    depth: bool = False,
    on_row: Callable[[Mapping[str, Any]], object] | None = None,
    ranks: RanksLike = None,
    **options: Unpack[PruningOptions],
) -> Sweep:
    """Several methods at several budgets: what is left of the model, and what a function of yours measures of it.

    The model is traced once and scored once for each seed; all plans come from those scores, and are made before the
    first cut, so that a budget that cannot be met shows at once. Each is then cut from the model, which stays as it is,
    compensated, evaluated and dropped.

    Args:
        budgets: shares of the whole model that stay, (0.9, 0.7, 0.5).
        methods: a list of names, functions, or options of planning. Names: "default" (what `Scores.plan` does by
            itself with these scores: the residual where second moments were kept, for compensation or another method),
            "tod" (the paper's method), the signals "l1", "l2", "activation", "taylor", "wasserstein", "residual" and
            "random", and these with an allocation before, as "uniform-l1" or "global-taylor". By themselves l1, l2,
            activation and random are spread uniformly, taylor by one threshold, wasserstein as "tod", residual as
            `Scores.plan` spreads it. A function of a group (`Group`) that gives a score per unit is spread uniformly.
            A dictionary holds options of `Scores.plan` and a "name": {"name": "mine", "allocation": "global",
            "removal": function}. One dictionary may have all of these by name.
        evaluate: gives a number of a model, or numbers by name (see `measured`); first it is given the whole model.
        by: "keep_params", "keep_flops", "keep_latency" (a table is measured once, and each plan checked on the clock),
            or "tod", of which the budgets are tolerances.
        seeds: of scoring: the directions of distances, what the model and the loss draw at random there, and the signal
            "random". Data, map, cut and evaluation are the same for all seeds; so is what "l1", "l2" and, where nothing
            is drawn, "activation", "taylor" and "residual" give.
        compensate: "least_squares" takes no further pass over the data: it solves from the moments that scoring kept,
            so that a sweep costs little more than one scoring and the evaluations. "sequential", which `prune` takes by
            itself, leaves more and walks through all data twice for each row. "none" compares methods by themselves.
        biases, more, unused, depth: as for `prune`.
        on_row: called with each row as soon as it is there, so that nothing is lost where something fails later.
        ranks: as for `prune`; the first process evaluates.
        options: of `score`, and limits of planning for all methods (`round_to`, `max_remove`, `min_keep`, `ignore`,
            `serve`, `protect`).

    Returns:
        A Sweep: `rows`, `to_pandas()`, `to_csv(path)`, `picture(path)`, and a table as text.

    Raises InputError, before anything is run, for options that are wrong, an unknown method, budgets that are none, and
    what has no classes or no second moments to go by; what the stages raise; what `evaluate` raises passes through.
    Cost: one scoring for each seed, and for each row a plan, a cut and an evaluation.
    """
    team = entered(ranks)
    check_model(model)
    check_unwrapped(model)
    if processes_of(model) > 1:
        raise InputError(
            f"this {type(model).__name__} lies in shards, and sweep() evaluates in one process: sweep first"
        )
    check_data(loader, loss_fn)
    check_values(model, RUN)
    function("evaluate", evaluate, EXPECTED)
    if on_row is not None:
        function("on_row", on_row, "a function of a row")
    refuse_unknown("sweep()", options, PruningOptions.__annotations__, _OWN)
    target = _target(by)
    wanted = shares(budgets, target)
    if not wanted:
        raise InputError("budgets= is empty; expected shares of the model that stay, for example (0.9, 0.7, 0.5)")
    numbers = _seeds(seeds, options)
    common, scoring = _divided(options)
    compared = methods_of(methods, common)
    method = choose(Compensation, "compensate", compensate)
    if isinstance(loader, Iterator) and len(numbers) > 1:
        raise InputError(
            f"{len(numbers)} seeds iterate the loader once each, and this one can be iterated once only; give a "
            "re-iterable loader, or one seed"
        )
    check_scoring(scoring)
    check_method(method, scoring, loader, inplace=False)
    given, samples_of = scoring.pop("units", None), scoring.get("samples_of")
    tracing: dict[str, Any] = {"more": check_more(more), "unused": names("unused", unused, "['mask_token']")}
    tracing["depth"] = flag("depth", depth)
    if given is not None:
        instance("units", given, types.UnitMap, UNITS)
        check_traced(given, 1, more, tracing["depth"])
    show = report.shown(scoring.get("progress", True)) if team.first else False
    given_biases = Biases.given(biases)
    with at_work(model, "sweep()"):
        first, batches = first_batch(loader)
        scoring = _fitting(scoring, compared, target, method, partial(capture.labelled, first, model, samples_of))
        said = {"budgets": wanted, "methods": [m.name for m in compared], "by": by, "seeds": numbers, "units": given}
        how = {**scoring, **tracing, "compensate": method, "biases": given_biases, "evaluate": evaluate}
        capture.check_same(team, "sweep()", model, {**said, **how})
        example = head(first, model, samples_of)
        budget = scoring.get("memory_budget") or 0
        cutter = Cutter(model, batches, loss_fn, samples_of, budget, given_biases, team)
        run = _Run(model, example, target, method, evaluate, cutter, on_row, team)
        run.begin()
        units = UnitMap.of(given) if given is not None else run.timed("trace", lambda: trace(model, example, **tracing))
        table = run.table(units, common)
        for seed in numbers:
            make = partial(score, model, batches, loss_fn, units=units, seed=seed, ranks=team, **scoring)
            scores = run.timed("score", make)
            plans = run.timed("plan", partial(run.plans, scores, compared, wanted, table))
            with report.progress(show) as told:
                for done, ((known, share), plan) in enumerate(plans.items()):
                    told(done, len(plans), f"cutting and evaluating, seed {seed}" if len(numbers) > 1 else "cutting")
                    run.row(scores, known, share, plan, seed)
        return run.sweep(units)


@dataclass
class _Run:
    """The rows of one call, and what they take."""

    model: nn.Module
    example: Any
    target: Target
    method: Compensation
    evaluate: Evaluate
    cutter: Cutter
    on_row: Callable[[Mapping[str, Any]], object] | None
    ranks: Ranks
    before: dict[str, float] = field(init=False, default_factory=dict)
    rows: list[Mapping[str, Any]] = field(init=False, default_factory=list)
    stages: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = dict.fromkeys(("trace", "score", "plan", "cut", "evaluate"), 0.0)

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = make()
        self.stages[name] += time.perf_counter() - started
        return made

    def begin(self) -> None:
        """The whole model, before all else, so that what is wrong with an evaluation shows at once."""
        self.before = self._evaluated(self.model)

    def table(self, units: UnitMap, common: Mapping[str, Any]) -> types.LatencyTable | None:
        """Measured once, where time is what counts."""
        if self.target is not Target.LATENCY:
            return None
        rounded = common.get("round_to", 1)
        made = partial(latency_table, self.model, units, self.example, round_to=rounded, ranks=False)
        table: types.LatencyTable = self.timed("plan", lambda: self.ranks.told("a measure of time", made))
        return table

    def plans(
        self,
        scores: Scores,
        methods: Sequence[Method],
        budgets: Sequence[float],
        table: types.LatencyTable | None,
    ) -> dict[tuple[Method, float], Plan]:
        """Of all rows, one method after the other."""
        return {(m, share): self._plan(scores, m, share, table) for m in methods for share in budgets}

    def _plan(self, scores: Scores, method: Method, share: float, table: types.LatencyTable | None) -> Plan:
        try:
            if self.target is Target.PARAMS:
                solve = partial(_planned, scores, self.target.value, method.planning)
                return counted(solve, share, self.model, scores, self.method, self.cutter.biases)
            if table is None:
                return _planned(scores, self.target.value, method.planning, share)
            make = partial(plan_latency, scores, self.model, self.example, share, latency=table, ranks=False)
            return self.ranks.told("a measure of time", partial(make, **method.planning))
        except BudgetError as error:
            raise BudgetError(f"the method {method.name!r}: {error}") from error

    def row(self, scores: Scores, known: Method, share: float, plan: Plan, seed: int) -> None:
        started, ms = time.perf_counter(), None
        small = self.cutter.cut(self.model, plan, scores, self.method).model
        took = self.ranks.told("a measure of time", lambda: time.perf_counter() - started)
        self.stages["cut"] += took
        if self.target is Target.LATENCY:
            ms = self.ranks.told("a measure of time", lambda: report.latency_ms(small, self.example, report.FEW))
        try:
            measures = self._evaluated(small)
        except InputError as error:
            at = f"{known.name!r} at {self.target.value}={share!r}, seed {seed}"
            raise InputError(f"{error} (of what is left by {at})") from error
        if measures.keys() != self.before.keys():
            raise InputError(
                f"evaluate named {list(self.before)} of the whole model, and {list(measures)} of a cut one"
            )
        by = self.target.value
        how: dict[str, Any] = {"method": known.name, "seed": seed, "budget": share, "by": by, "latency_ms": ms}
        self.rows.append(row(plan, small, measures=measures, seconds=took, **how))
        if self.on_row is not None:
            self.on_row(self.rows[-1])

    def sweep(self, units: UnitMap) -> Sweep:
        whole_model = build(units, nothing(units)).result
        costs = {"params": sum(p.numel() for p in self.model.parameters()), "flops": whole_model["flops_before"]}
        if self.target is Target.LATENCY:
            timed = partial(report.latency_ms, self.model, self.example, report.FEW)
            costs["latency_ms"] = self.ranks.told("a measure of time", timed)
        stages = self.ranks.told("a measure of time", lambda: self.stages)
        names_of = (type(self.model).__name__, self.target.value, tuple(self.rows), {**costs, **self.before})
        return Sweep(*names_of, self.method.value, stages, report.versions())

    def _evaluated(self, model: nn.Module) -> dict[str, float]:
        told = partial(self.ranks.told, "a measure of time", partial(measured, self.evaluate, model))
        found: dict[str, float] = self.timed("evaluate", told)
        return found


def _planned(scores: Scores, target: str, planning: Mapping[str, Any], share: float) -> Plan:
    asked: dict[str, Any] = {target: share, **planning}
    return scores.plan(**asked)


def _target(by: Any) -> Target:
    target = choose(Target, "by", by)
    if target is Target.DROP:
        raise InputError("by='drop' has no shares; expected 'keep_params', 'keep_flops', 'keep_latency' or 'tod'")
    return target


def _seeds(given: Any, options: Mapping[str, Any]) -> tuple[int, ...]:
    if "seed" in options:
        raise InputError("seed= is one of several here: pass seeds=[…]")
    iterable("seeds", given, "whole numbers, for example (0, 1, 2)")
    found = tuple(dict.fromkeys(whole(f"seeds[{k}]", seed, 0, SEEDS - 1) for k, seed in enumerate(given)))
    if not found:
        raise InputError("seeds= is empty; expected whole numbers, for example (0, 1, 2)")
    return found


def _divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of planning, common to all methods, and those of scoring."""
    for name in ("allocation", "removal"):
        if name in options:
            raise InputError(f"{name}={short(options[name])} is what methods differ in: put it into methods=")
    common = {name: given for name, given in options.items() if name in PlanningOptions.__annotations__}
    if isinstance(common.get("ignore"), Iterator):
        common["ignore"] = list(common["ignore"])  # read by every plan
    return common, {name: given for name, given in options.items() if name not in common}


def _fitting(
    scoring: Mapping[str, Any],
    methods: Sequence[Method],
    target: Target,
    method: Compensation,
    labelled: Callable[[], bool],
) -> dict[str, Any]:
    """What one scoring has to keep so that all methods can plan by it. Raises InputError as `fit_together`."""
    made: list[dict[str, Any]] = []
    for known in methods:
        own = dict(scoring)
        try:
            fit_together(own, known.planning, target, method, labelled)
        except InputError as error:
            raise InputError(f"the method {known.name!r}: {error}") from error
        made.append(own)
    fits = dict(made[0])
    fits["gram"] = any(own["gram"] for own in made)
    if "keep_moments" not in scoring:
        fits["keep_moments"] = any(own["keep_moments"] for own in made)
    if all("max_remove" in own for own in made):
        fits["max_remove"] = max(own["max_remove"] for own in made)
    else:
        fits.pop("max_remove", None)
    return fits
