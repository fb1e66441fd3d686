"""What was done, as a report and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fairkern import options, report, types
from fairkern.checks import check_plan, check_scores
from fairkern.compact.descriptors import check_pruned
from fairkern.compensate import Correction, through_zero, unexplained
from fairkern.results import PathLike, Plan, Report, check_measures
from fairkern.surroundings import stage


def summarise(
    plan: types.Plan,
    *,
    scores: types.Scores | None = None,
    title: str = "",
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
    healed: Mapping[str, float] | None = None,
    stages: Mapping[str, float] | None = None,
    timing: Mapping[str, Any] | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    corrected: Sequence[Correction] = (),
    compensation: str | None = None,
    small: nn.Module | None = None,
    biases: str | None = None,
    flags: Sequence[types.ConfigChange] = (),
    unplaced: Sequence[str] = (),
) -> Report:
    """A report of a plan: parameters and FLOPs from the plan, and whatever else was measured.

    `small`, the cut model, is asked for its parameters: compensation may have added biases, which no plan counts.
    `before` and `after` take further measures by name (`accuracy`, `latency_ms`), `healed` those of the cut model after
    `heal`, in a column of their own; `stages` seconds by stage. `timing`: from `compare_latency`; its medians are the
    `latency_ms` of both, unless those are given. `curve`: rows of budgets that were tried (`types.Report`).
    `environment`: where it was made, in place of what is seen here.
    `compensation`: which one it was. `corrected`: what it did, with `scores`; each group's row then has the share of
    its removed activations that the units that stay do not predict. `biases`: where weights were given one that have
    none; `flags`: fields of the configuration that were set for them; `unplaced`: biases that it has no field for, and
    that who loads the model by its configuration drops.

    Raises InputError, and PlanMismatchError where `small` is not what `plan` leaves.
    """
    check_plan(plan)
    check_scores(scores)
    for name, given in (("title", title), ("compensation", compensation), ("biases", biases)):
        if given is not None:
            options.instance(name, given, str, "a text")
    for name, measures in (("before", before), ("after", after), ("healed", healed), ("stages", stages)):
        if measures is not None:
            check_measures(name, measures)
    for name, facts in (("timing", timing), ("environment", environment)):
        if facts is not None:
            options.mapping(name, facts, "a dictionary of facts by name")
    options.iterable("curve", curve, "rows of budgets that were tried")
    for row in curve:
        options.mapping("curve", row, "rows of budgets that were tried")
    options.iterable("corrected", corrected, "corrections")
    for correction in corrected:
        options.instance("corrected", correction, Correction, "corrections")
    if small is not None:
        options.instance("small", small, nn.Module, options.MODEL)
        check_pruned(small, plan)
    options.iterable("flags", flags, "changes of a configuration")
    for change in flags:
        options.instance("flags", change, types.ConfigChange, "changes of a configuration")
    unplaced = options.names("unplaced", unplaced, "['layers.0.down.bias']")
    done = {
        "compensation": compensation,
        **({} if biases is None else {"biases": biases}),
        "compensated": sum(c.weight is not None for c in corrected),
        "not_compensated": {str(c.axis): c.note for c in corrected if c.weight is None},
        "through_zero": through_zero(corrected),
    }
    made = report.summary(
        plan,
        scores,
        title=title or f"{plan.model}, pruned",
        measures=(_timed(timing, "before", before), _timed(timing, "after", after), healed or {}),
        stages=stages or {},
        params=None if small is None else sum(p.numel() for p in small.parameters()),
        unexplained=unexplained(scores.units, corrected) if scores is not None else {},
        compensation=done,
        flags=flags,
        unplaced=unplaced,
    )
    if environment is None:
        known = {} if scores is None else scores.provenance
        environment = report.environment({"scoring": known["seed"]} if "seed" in known else {})
    made = replace(made, timing=dict(timing or {}), curve=tuple(curve), environment=dict(environment))
    return Report(**vars(made), plan=Plan.of(plan))


def _timed(timing: Mapping[str, Any] | None, when: str, measures: Mapping[str, float] | None) -> dict[str, float]:
    """Measures, with the median of a timing first."""
    taken = {} if timing is None or when not in timing else {"latency_ms": timing[when]["p50"]}
    return {**taken, **(measures or {})}


@stage
def picture(scores: types.Scores, plan: types.Plan, path: PathLike) -> None:
    """A picture of a plan, as PNG, SVG or PDF by the ending of `path`: what goes of each group, curves of what decided
    with the threshold, U against R. Needs matplotlib (`fairkern[demo]`).

    Raises InputError (no matplotlib, an ending that it does not write, scores of another plan), OSError.
    """
    check_plan(plan)
    options.instance("scores", scores, types.Scores, options.SCORES)
    report.save_picture(scores, plan, options.place("path", path))
