"""Pruning from start to end: trace, score, plan and cut, in one step or in several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from fairkern import capture, report, types
from fairkern.allocate import Allocation, Planning, PlanningOptions, Target, parse_target, refuse_unknown
from fairkern.api import RUN, check_data, check_model, check_more, score, summarise, trace
from fairkern.capture.batches import first_batch, head
from fairkern.compensate import Compensation, Correction
from fairkern.compensate.cut import cut
from fairkern.errors import BudgetError, InputError
from fairkern.model.in_use import at_work
from fairkern.options import TABLE, UNITS, choose, flag, function, instance, names, whole
from fairkern.plans.build import build
from fairkern.plans.compose import compose, matching
from fairkern.plans.removals import nothing
from fairkern.prove import check_values
from fairkern.results import Plan, Report, Scores
from fairkern.surroundings import stage
from fairkern.timing import plan_latency

AT_ONCE = 4 * 2**30  # bytes of activations that sequential compensation may hold where nobody asked for it
_BUDGETS = ("keep_params", "keep_flops", "keep_latency")
_KEYWORDS = ("tod", *_BUDGETS, "latency", "iterations", "compensate", "inplace", "more", "unused", "keep_scores")
_FITS = (None, Compensation.LEAST_SQUARES, Compensation.SEQUENTIAL)  # made from second moments


class PruningOptions(PlanningOptions, total=False):
    """Keywords that `prune` hands on: to `Scores.plan` those of `PlanningOptions`, to `score` these."""

    units: types.UnitMap | None
    samples_per_class: int
    projections: int
    seed: int
    class_of: Callable[[Any], Tensor] | Literal[False] | None
    samples_of: Callable[[Any], int] | None
    recipe: str
    reduction: str | None
    pairs: str
    loss_reduction: str
    backend: str
    memory_budget: int | None
    gram: bool
    progress: bool


@stage
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
    compensate: str | None = None,
    inplace: bool = False,
    more: Sequence[Any] = (),
    unused: Iterable[str] = (),
    keep_scores: bool = False,
    **options: Unpack[PruningOptions],
) -> tuple[nn.Module, Report]:
    """Trace, score, plan and cut: the smaller model and what was done.

    Budget as in `Scores.plan`, `inplace` as in `apply`. Every other keyword is an option of `Scores.plan`
    (`allocation`, `removal`, `protect`, `round_to`, `max_remove`, `min_keep`, `ignore`) or of `score`, with the
    defaults that they have there. What is left open is chosen so that it fits what is given: where the targets are no
    class labels (a language model's), nothing is asked for that compares classes, and no `class_of` is given, the
    U-score is left out (`class_of=False`); second moments are kept (`gram`) where compensation or a signal takes them,
    and where there is no U to plan by. The report holds the plan (`Report.plan`), as `save_pruned` needs it. FLOPs
    and latency are those of the first two samples of the first batch (of one, where they come one by one).

    Args:
        keep_latency: the share of the model's time, on a few samples of the loader's first batch, that may be left.
            Plans are checked by timing what they leave (`plan_latency`).
        latency: from `latency_table` for these inputs; measured here where none is given.
        iterations: in how many steps. Every step cuts, compensates, and is traced and scored anew; the budgets of the
            steps lie in equal ratios (0.25 in two steps: a half, a quarter), all of them shares of the whole model,
            biases counted that compensation has added before. `max_remove` is spread over the steps likewise. The plan
            is one plan for the whole model; `Report.choices["steps"]` has what each step left.
        compensate: None takes "sequential" where it can be had: the loader can be iterated again, the model need not be
            cut in place, the model keeps nothing of a batch in its modules (as a causal cache does), and what is held
            of all batches at one depth is expected to stay below 4 GiB; else "least_squares".
            `Report.choices["compensation"]` says which.
        more, unused: as for `trace`, of every step; `units` that are given bring what is unused along.
        keep_scores: `Report.scores` has those of the last step, for other plans of the model that it was made of; with
            second moments, which take much memory.

    Raises what these stages raise, and InputError, before anything is run: options that contradict each other (what
    compares classes where there are none, compensation without what it takes), fewer than one step, several with
    `tod`, with `latency`, with a loader that can be iterated once only, or with `units` that were traced with `more`
    where `more` is not given.
    Cost: `iterations` times a trace with its proof, a pass over the data and a cut.
    """
    check_model(model)
    check_data(loader, loss_fn)
    check_values(model, RUN)
    refuse_unknown("prune()", options, PruningOptions.__annotations__, _KEYWORDS)
    more, unused, iterations = (
        check_more(more),
        names("unused", unused, "['mask_token']"),
        whole("iterations", iterations, 1),
    )
    inplace, keep_scores = flag("inplace", inplace), flag("keep_scores", keep_scores)
    if isinstance(options.get("ignore"), Iterator):
        options["ignore"] = list(options["ignore"])  # read by every plan
    planning: dict[str, Any] = {n: given for n, given in options.items() if n in PlanningOptions.__annotations__}
    asked_of = Planning(**planning).allocation
    kind = Allocation.TOD if asked_of is None else Allocation(asked_of)
    target, keep = parse_target(kind, tod, keep_params, keep_flops, keep_latency)
    _check_steps(iterations, target, latency, loader)
    method = None if compensate is None else choose(Compensation, "compensate", compensate)
    scoring: dict[str, Any] = {name: value for name, value in options.items() if name not in planning}
    given = scoring.pop("units", None)
    if given is not None:
        instance("units", given, types.UnitMap, UNITS)
        _check_traced(given, iterations, more)
        unused = unused or given.unused
    _check_method(method, scoring, loader, inplace)
    samples_of = scoring.get("samples_of")
    if samples_of is not None:
        function("samples_of", samples_of, "a function of a batch")
    with at_work(model, "prune()"):
        first, batches = first_batch(loader)
        _fit_together(scoring, planning, target, method, labelled=lambda: capture.labelled(first, model, samples_of))
        again = not isinstance(loader, Iterator) and not inplace and scoring["gram"]
        tracing = {"more": more, "unused": unused}
        asked = _Asked(target.value, keep, latency, iterations, planning, scoring, tracing, method, again, inplace)
        run = _Run(model, head(first, model, samples_of), batches, loss_fn, asked)
        for number in range(1, iterations + 1):
            run.step(number, given if number == 1 else None)
        report = run.report()
    return run.current, replace(report, scores=run.scores) if keep_scores else report


def _fit_together(
    scoring: dict[str, Any],
    planning: Mapping[str, Any],
    target: Target,
    method: Compensation | None,
    labelled: Callable[[], bool],
) -> None:
    """Choose what the caller left open of `class_of` and `gram`, so that it fits what he fixed.

    Raises InputError where what he fixed does not fit together itself, and says what would.
    """
    removal, protect, gram = planning.get("removal"), planning.get("protect"), scoring.get("gram")
    tolerant = target is Target.TOD or planning.get("allocation") == Allocation.TOD.value
    instead = "removal='taylor'" if gram is False else "removal='residual'"
    compares: dict[str, str] = {}  # what does, and what does not
    if _is(removal, "wasserstein"):
        compares["removal='wasserstein'"] = instead
    elif removal is None and tolerant:
        compares["tod=" if target is Target.TOD else "allocation='tod'"] = instead
    if _is(protect, "wasserstein"):
        compares["protect='wasserstein'"] = "protect='taylor'"
    if _is(scoring.get("reduction"), "per_class"):
        compares["reduction='per_class'"] = "reduction='per_sample'"
    none = scoring.get("class_of") is False
    if none or (scoring.get("class_of") is None and not labelled()):
        if compares:
            why = "class_of=False says that there are none" if none else "the targets are no class labels"
            raise InputError(
                f"{' and '.join(compares)} compare{'s' if len(compares) == 1 else ''} classes, and {why}: pass "
                "class_of= to say which class a sample belongs to (class_of=lambda batch: batch[1] to compare places), "
                f"or {', '.join(compares.values())}"
            )
        scoring["class_of"], none = False, True
    residual = [f"{n}='residual'" for n, s in (("removal", removal), ("protect", protect)) if _is(s, "residual")]
    if gram is None:
        scoring["gram"] = method in _FITS or bool(residual) or (none and removal is None)
    elif not flag("gram", gram) and residual:
        raise InputError(f"{residual[0]} comes from second moments, which gram=False leaves out: leave out gram=")


def _is(given: Any, name: str) -> bool:
    return isinstance(given, str) and given == name


def _check_method(
    method: Compensation | None, scoring: Mapping[str, Any], loader: Iterable[Any], inplace: bool
) -> None:
    """Raises InputError where compensation that was asked for will not have what it takes."""
    if method is None or method is Compensation.NONE:
        return
    asked = f"compensate={method.value!r}"
    if method is Compensation.MEAN and _is(scoring.get("recipe"), "paper"):
        raise InputError(f"{asked} folds in means of what consumers read: use recipe='default', not 'paper'")
    if method is not Compensation.MEAN and scoring.get("gram") is False:
        raise InputError(f"{asked} solves from second moments, which gram=False leaves out: leave out gram=")
    if method is Compensation.SEQUENTIAL and inplace:
        raise InputError(f"{asked} compares with the uncut model: use compensate='least_squares' with inplace=True")
    if method is Compensation.SEQUENTIAL and isinstance(loader, Iterator):
        raise InputError(
            f"{asked} looks at the data again, and this loader can be iterated once only: give a re-iterable one, or "
            "use compensate='least_squares'"
        )


def _check_steps(iterations: int, target: Target, latency: types.LatencyTable | None, loader: Iterable[Any]) -> None:
    if latency is not None:
        instance("latency", latency, types.LatencyTable, TABLE)
    if iterations == 1:
        return
    if target is Target.TOD:
        raise InputError(
            f"iterations={iterations} needs a budget to approach in steps: give one of {_BUDGETS}, not tod"
        )
    if latency is not None:
        raise InputError("several iterations measure a latency table for the model of every step: leave out latency=")
    if isinstance(loader, Iterator):
        raise InputError(
            f"iterations={iterations} iterates the loader once a step, and this one can be iterated once only; "
            "give a re-iterable loader"
        )


def _check_traced(units: types.UnitMap, iterations: int, more: Sequence[Any]) -> None:
    if iterations > 1 and units.more > len(more):
        raise InputError(
            f"iterations={iterations} traces the model anew after every step, and units= was traced with {units.more} "
            f"further example inputs, of which {len(more)} are given: pass those as more= here as well"
        )


@dataclass(frozen=True)
class _Asked:
    """What one call of `prune` was asked for, checked."""

    target: str
    keep: float
    latency: types.LatencyTable | None
    iterations: int
    planning: dict[str, Any]
    scoring: dict[str, Any]
    tracing: dict[str, Any]
    method: Compensation | None  # None: the best that can be had
    again: bool  # whether the data may be looked at again, beside the model as it was
    inplace: bool


@dataclass
class _Run:
    """The steps of one call, and what they share."""

    model: nn.Module
    example: Any
    loader: Iterable[Any]
    loss_fn: Callable[[Any, Any], Tensor] | None
    asked: _Asked
    current: nn.Module = field(init=False)
    scores: Scores = field(init=False)  # of the last step
    method: Compensation = field(init=False)
    corrected: list[Correction] = field(init=False)
    done: list[tuple[types.UnitMap, Plan]] = field(init=False, default_factory=list)
    stages: dict[str, float] = field(init=False)
    before: float = field(init=False, default=0.0)  # milliseconds of the whole model
    spent: float = field(init=False, default=1.0)  # share of the whole model that the last step started from

    def __post_init__(self) -> None:
        self.current = self.model
        self.stages = {"trace and score": 0.0, "plan": 0.0, "cut": 0.0}

    def step(self, number: int, units: types.UnitMap | None) -> None:
        """Score what the step before has left (traced here, unless its map is known), plan and cut."""
        times = [time.perf_counter()]
        units = self._traced() if units is None else units
        self.scores = score(self.current, self.loader, self.loss_fn, units=units, **self.asked.scoring)
        times.append(time.perf_counter())
        plan = self._plan(number)
        times.append(time.perf_counter())
        if number == 1:  # before the model may be cut in place
            self.before = report.latency_ms(self.model, self.example)
        cutting = time.perf_counter()
        self._cut(plan, number)
        self.done.append((self.scores.units, plan))
        passed = (times[1] - times[0], times[2] - times[1], time.perf_counter() - cutting)
        for name, seconds in zip(self.stages, passed, strict=True):
            self.stages[name] += seconds

    def report(self) -> Report:
        """What was done, with one plan for the whole model, and its latency beside that of what is left."""
        before, after = self._latencies()
        return summarise(
            self._whole_plan(),
            scores=self.scores,
            title=f"{type(self.model).__name__}, pruned",
            before={"latency_ms": before},
            after={"latency_ms": after},
            stages=self.stages,
            corrected=self.corrected,
            small=self.current,
            compensation=self.method.value,
        )

    def _traced(self) -> types.UnitMap:
        """The map of a step's model; what a later one has that the first has not is left alone."""
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
            return self.scores.plan(**{self.asked.target: keep, "latency": self.asked.latency, **options})
        return plan_latency(self.scores, self.current, self.example, keep, latency=self.asked.latency, **options)

    def _spent(self) -> float:
        """The share of the whole model's costs that a step starts from."""
        if self.asked.target == "keep_latency":
            before, now = report.latencies_ms([self.model, self.current], self.example)
            return now / before
        name = f"{self.asked.target.removeprefix('keep_')}_before"
        uncut = build(self.scores.units, nothing(self.scores.units))
        return uncut.result[name] / self.done[0][1].result[name]

    def _cut(self, plan: Plan, number: int) -> None:
        self.method = self.asked.method or self._best_method()
        own = number > 1 and self.method is not Compensation.SEQUENTIAL  # a copy of ours
        inplace = self.asked.inplace or own
        self.current, self.corrected = cut(self.current, plan, self.method, self.scores, self.loader, inplace=inplace)

    def _best_method(self) -> Compensation:
        """What is folded in where nobody said: layer after layer, if that may be and there is room for it."""
        if not self.scores.moments:
            return Compensation.NONE
        known = self.scores.provenance
        held = 2 * known["predicted_bytes"]["layer"] * known["samples" if known["singly"] else "batches"]
        sequential = self.asked.again and held <= AT_ONCE and not known.get("keeps")
        return Compensation.SEQUENTIAL if sequential else Compensation.LEAST_SQUARES

    def _latencies(self) -> tuple[float, float]:
        """Before and after, in turn where both models are there."""
        if self.asked.inplace:
            return self.before, report.latency_ms(self.current, self.example)
        before, after = report.latencies_ms([self.model, self.current], self.example)
        return before, after

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
        return compose(units, plans, request, result)


def _left(units: types.UnitMap, plans: Sequence[Plan], plan: Plan) -> dict[str, Any]:
    """What a step left, by the costs of the whole model."""
    result = compose(units, plans).result
    names = ("params_after", "flops_after", "units_removed")
    return {**{name: result[name] for name in names}, "tolerance": plan.result["tolerance"]}
