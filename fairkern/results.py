"""What users hold: maps, scores, plans and reports, with the methods that lead from one to the next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from typing_extensions import Unpack

from fairkern import allocate, artefacts, compact, options, report, types
from fairkern.allocate import LimitOptions, PlanningOptions
from fairkern.errors import InputError
from fairkern.model.unit_weights import unit_weights
from fairkern.plans.cost import per_unit
from fairkern.report import wording
from fairkern.surroundings import stage

if TYPE_CHECKING:
    from pandas import DataFrame

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class UnitMap(types.UnitMap):
    """What can be cut from a model (see `fairkern.types.UnitMap` for the fields)."""

    @classmethod
    def of(cls, data: types.UnitMap) -> UnitMap:
        """The same map, with the methods of this class."""
        return data if isinstance(data, UnitMap) else cls(**vars(data))

    def __repr__(self) -> str:
        proof = "proven" if self.proven else "not proven"
        return f"<UnitMap of {self.model}: {_counted(self, self.prunable)} can be cut, {proof}>"

    def __str__(self) -> str:
        return self.explain()

    def weights(self, model: nn.Module, group: types.AxisGroup | str) -> dict[str, Tensor]:
        """The weights that make a group's units, by their names: a row for each unit, `[sets · units, values]`.

        They are parameters of two or more dimensions (vectors, where there are no others) along an axis that holds the
        units and does not contract over them: filters of a convolution, rows of a matrix, of a head those of its
        queries, keys and values. Of experts and branches as a whole a row is all that is theirs.
        For signals of your own: `removal=lambda group: norm_of(group.map.weights(model, group))`.

        Args:
            model: the one that was traced, or another of its shapes.
            group: of this map, as functions that score units get it, or its name.

        Returns: copies, in the weights' dtype and on their device. A parametrized weight is what its parametrization
        is given.
        Raises InputError (no such group, units that are modules of unequal size), PlanMismatchError (other shapes).
        """
        options.instance("model", model, nn.Module, options.MODEL)
        name = group.name if isinstance(group, types.AxisGroup) else group
        found = next((known for known in self.groups if known.name == name), None)
        if found is None:
            known_names = [known.name for known in self.groups]
            near = options.near(name, known_names) if isinstance(name, str) else f"; names are {known_names[:4]}"
            raise InputError(
                f"group={options.short(name)} is no group of {self.model}; expected one of it, or its name{near}"
            )
        return unit_weights(model, self, found)

    def explain(self) -> str:
        """A table: group, kind, units, axes, consumers, parameters and FLOPs per unit, or why it is frozen."""
        params, flops = per_unit(self)
        return report.render(report.explain_table(self, params.tolist(), flops.tolist()))

    @stage
    def plan(
        self,
        *,
        keep_params: float | None = None,
        keep_flops: float | None = None,
        drop: Mapping[str, int] | None = None,
        seed: int = 0,
        **limits: Unpack[LimitOptions],
    ) -> Plan:
        """A plan without scores, so without data: an equal share of every group, units drawn at random.

        For sizes and costs under a budget (of a model on the meta device too), and as the baseline that scores have
        to beat. Of the options of `Scores.plan` it takes the limits (`round_to=1`, `max_remove=0.99`, `min_keep=1`,
        `ignore=()`, `serve=None`); errors as there.
        """
        allocate.refuse_unknown(
            "UnitMap.plan()", limits, LimitOptions.__annotations__, ("keep_params", "keep_flops", "drop", "seed")
        )
        drawn = types.Scores(self, {}, {}, {"seed": options.seed(seed)})
        plan = allocate.allocate(
            drawn,
            keep_params=keep_params,
            keep_flops=keep_flops,
            drop=drop,
            allocation="uniform",
            removal="random",
            **limits,
        )
        return Plan.of(plan)


@dataclass(frozen=True)
class Scores(types.Scores):
    """Scores of every unit (see `fairkern.types.Scores`); any number of plans come from them."""

    units: UnitMap

    def __repr__(self) -> str:
        counted = _counted(self.units, self.units.scored)
        return f"<Scores of {self.units.model}: {counted}; {', '.join(self.signals) or 'none'}>"

    def __str__(self) -> str:
        counted = _counted(self.units, self.units.scored)
        return f"scores of {counted} of {self.units.model}: {', '.join(self.signals) or 'none'}"

    @classmethod
    def of(cls, data: types.Scores) -> Scores:
        """The same scores, with the methods of this class, and so their map."""
        return data if isinstance(data, Scores) else cls(**{**vars(data), "units": UnitMap.of(data.units)})

    @stage
    def plan(
        self,
        *,
        tod: float | None = None,
        keep_params: float | None = None,
        keep_flops: float | None = None,
        keep_latency: float | None = None,
        drop: Mapping[str, int] | None = None,
        latency: types.LatencyTable | None = None,
        **choices: Unpack[PlanningOptions],
    ) -> Plan:
        """Which units go, for a tolerance or a budget. Milliseconds: neither model nor data is needed.

        Exactly one of `tod` (the tolerance α), `keep_params`, `keep_flops` and `keep_latency` (at most this share of
        the whole model stays; `latency` from `latency_table`) and `drop` (`{"expert": 2}`: so many units of every group
        of that kind go) is given. Scores with the residual, a second-order saliency (`score(…, gram=True)`), take one
        threshold on it for all groups, over what a unit costs where that is the same whatever else goes ("priced", as
        in transformers; elsewhere "global"). Others take the Tolerance of Difference, or, where no classes were
        compared, one threshold on R. `allocation` and `removal` say otherwise.

        Options, all of them keywords:
            allocation=None: how removal is spread over groups: "tod", "uniform", "global", "normalized" or "priced".
            removal=None: the signal that decides the order in a group, low goes first: a name in `signals`, "random",
                or a function of a group that gives a score per unit.
            protect="taylor": the signal that "tod" holds against it; high stays.
            round_to=1: what stays of a group that is cut is a multiple of this many channels; or a number by kind of
                unit, `{"neuron": 128, "head": 1}`.
            max_remove=0.99: at most this share of a group's units goes.
            min_keep=1: at least so many units of each group stay.
            ignore=(): `fnmatch` patterns of group names or producing modules that are not cut.
            serve=None: who loads what is left, and so which layers have to stay equal: "hf", "vllm", "gguf", "deci", or
                "gguf:q8_0" for a type whose blocks widths have to fill.

        Errors and method: `fairkern.allocate.allocate`.
        """
        targets = ("tod", "keep_params", "keep_flops", "keep_latency", "drop", "latency")
        allocate.refuse_unknown("Scores.plan()", choices, PlanningOptions.__annotations__, targets)
        plan = allocate.allocate(
            self,
            tod=tod,
            keep_params=keep_params,
            keep_flops=keep_flops,
            keep_latency=keep_latency,
            drop=drop,
            latency=latency,
            **choices,
        )
        return Plan.of(plan)

    def to_pandas(self, plan: types.Plan | None = None) -> DataFrame:
        """A data frame with a row per unit that can be cut. Needs pandas (`fairkern[research]`); InputError without.

        Columns: `group`, `kind`, `set` and `unit` (both from 0), every signal by its name (NaN where it has none of
        the unit), and the `params` and `flops` that go with a unit, the other groups whole. With a `plan` that was
        made from these scores also `removed`, whether the unit goes.
        """
        check_plan_of(self.units, plan)
        return report.frame(report.unit_columns(self, plan))

    @stage
    def save(self, path: PathLike) -> None:
        """One safetensors file, written atomically."""
        artefacts.save_scores(self, options.place("path", path))

    @classmethod
    @stage
    def load(cls, path: PathLike) -> Scores:
        """Raises ArtefactError for a truncated, edited, foreign or newer file."""
        return cls.of(artefacts.load_scores(options.place("path", path)))


@dataclass(frozen=True)
class Plan(types.Plan):
    """Which positions of which axes go (see `fairkern.types.Plan`)."""

    @classmethod
    def of(cls, data: types.Plan) -> Plan:
        """The same plan, with the methods of this class."""
        return data if isinstance(data, Plan) else cls(**vars(data))

    def __repr__(self) -> str:
        return f"<{str(self).replace('plan', 'Plan', 1)}>"

    def __str__(self) -> str:
        result = self.result
        costs = [
            f"{what} {result[f'{key}_before']:,} → {result[f'{key}_after']:,}"
            for key, what in (("params", "parameters"), ("flops", "FLOPs"))
            if f"{key}_before" in result and f"{key}_after" in result
        ]
        removed, whole = sum(g.removed.size for g in self.groups), sum(g.total for g in self.groups)
        return ", ".join([f"plan for {self.model}: {removed:,} of {whole:,} units go", *costs])

    def masked(self, model: nn.Module) -> compact.masked:
        """Context manager: inside, every removed unit contributes zero to every consumer; put back on exit."""
        options.instance("model", model, nn.Module, options.MODEL)
        return compact.masked(model, self)

    def to_pandas(self) -> DataFrame:
        """A data frame with a row per group that could be cut. Needs pandas (`fairkern[research]`); InputError without.

        Columns: `group`, `kind`, `sets`, `units` of all sets, how many of them are `removed` and `kept`, the `rate`
        that goes, the `threshold` that this takes (None where nothing goes), and `removed_units`, their numbers, set
        after set.
        """
        return report.frame(report.plan_columns(self))

    @stage
    def save(self, path: PathLike) -> None:
        """JSON, written atomically: to be read. To change a plan, load it, `dataclasses.replace` and save it."""
        artefacts.save_plan(self, options.place("path", path))

    @classmethod
    @stage
    def load(cls, path: PathLike) -> Plan:
        """Raises ArtefactError for a truncated, edited, foreign or newer file."""
        return cls.of(artefacts.load_plan(options.place("path", path)))


@dataclass(frozen=True)
class Report(types.Report):
    """What a run did (see `fairkern.types.Report`). `plan`, by which it was cut, and `scores`, where `prune` was asked
    to keep them, are not part of its file."""

    plan: Plan | None = field(default=None, repr=False, compare=False)
    scores: Scores | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        told = (
            f"{wording.LABELS.get(name, name)} {wording.shown(self, name, 'before')} → "
            f"{wording.shown(self, name, 'after')}"
            for name in self.after
            if name in self.before
        )
        return f"<Report {self.title!r}: {', '.join(told)}>"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Measures before, after and, where it was healed, then; a row per group, seconds per stage."""
        return report.render(report.report_table(self))

    def with_healed(self, measures: Mapping[str, float], *, small: nn.Module | None = None) -> Report:
        """The same report with a column more: `measures` of the cut model after `heal`, as {"perplexity": 8.5}.

        Parameters and FLOPs are those of the cut, or, where `small` is given, its parameters. Raises InputError for
        what are no numbers by name.
        """
        check_measures("measures", measures)
        if small is not None:
            options.instance("small", small, nn.Module, options.MODEL)
        own = {name: self.after[name] for name in ("params", "flops", "latency_predicted_ms") if name in self.after}
        if small is not None:
            own["params"] = sum(p.numel() for p in small.parameters())
        return replace(self, healed={**own, **measures})

    @stage
    def save(self, path: PathLike) -> None:
        """JSON, written atomically."""
        report.save_report(self, options.place("path", path))

    @stage
    def save_html(self, path: PathLike, *, scores: types.Scores | None = None) -> None:
        """One page for a browser, written atomically: no network, readable without a script, on any screen.

        Widths before and after, the signal that decided and its threshold, U against R, figures before and after, what
        stays and why, and how it was made. What decided is drawn from `plan` and from the `scores` that the plan was
        made from: those given, or those that `prune(…, keep_scores=True)` kept; without them the page says so. (Of
        several steps `prune` keeps the last one's, which are not those of the whole plan.)

        Raises InputError (no scores, or scores of another plan), OSError. Cost: a second for 10,000 units.
        """
        if scores is not None:
            options.instance("scores", scores, types.Scores, options.SCORES)
        elif "steps" not in self.choices:
            scores = self.scores
        report.save_html(self, options.place("path", path), self.plan, scores)

    @classmethod
    @stage
    def load(cls, path: PathLike) -> Report:
        """Raises ArtefactError for a truncated, edited, foreign or newer file."""
        return cls(**vars(report.load_report(options.place("path", path))))


@dataclass(frozen=True, eq=False)
class LatencyTable(types.LatencyTable):
    """How long a model takes by what is left of each layer (see `fairkern.types.LatencyTable`)."""

    def __str__(self) -> str:
        return f"latency of {len(self.layers)} layers, {self.whole:.4g} ms in all"

    @classmethod
    def of(cls, data: types.LatencyTable) -> LatencyTable:
        """The same table, with the methods of this class."""
        return data if isinstance(data, LatencyTable) else cls(**vars(data))

    @stage
    def save(self, path: PathLike) -> None:
        """JSON, written atomically."""
        artefacts.save_latency(self, options.place("path", path))

    @classmethod
    @stage
    def load(cls, path: PathLike) -> LatencyTable:
        """Raises ArtefactError for a truncated, edited, foreign or newer file."""
        return cls.of(artefacts.load_latency(options.place("path", path)))


def _counted(units: types.UnitMap, groups: Sequence[int]) -> str:
    """`4,800 units in 9 groups`"""
    count = sum(units.groups[g].total for g in groups)
    return f"{count:,} units in {len(groups)} group{'s' * (len(groups) != 1)}"


def check_plan_of(units: types.UnitMap, plan: types.Plan | None) -> None:
    """Raises InputError for what is no plan, or not one of the groups of this map; None is none."""
    if plan is None:
        return
    options.instance("plan", plan, types.Plan, options.PLAN)
    held = {units.groups[g].name: units.groups[g].total for g in units.prunable}
    if {group.name: group.total for group in plan.groups} != held:
        raise InputError(f"plan= was not made from these scores of {units.model}: its groups are others")
    if {n: tuple(shape) for n, shape in units.shapes.items()} != {n: tuple(shape) for n, shape in plan.shapes.items()}:
        raise InputError(f"plan= was not made from these scores of {units.model}: the shapes of its tensors are others")


def check_measures(name: str, given: object) -> None:
    """Raises InputError for what are no measures: finite numbers by name."""
    options.mapping(name, given, 'a dictionary of numbers by name, such as {"perplexity": 8.5}')
    assert isinstance(given, Mapping)
    for key, value in given.items():
        options.real(f"{name}[{key!r}]", value)
