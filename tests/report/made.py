"""Reports to be drawn: of a plan by every kind of allocation, with and without what may be missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import fairkern as fk
from fairkern.plans.build import build
from fairkern.types import Axis, AxisGroup, CallSite, CostTerm, Extent, GroupAxis, Side, Silence, Tap, UnitMap

TIMING: dict[str, Any] = {
    "before": {"p20": 20.125, "p50": 21.0, "p80": 24.0625},
    "after": {"p20": 9.75, "p50": 10.5, "p80": 11.0},
    "speedup": {"p20": 1.875, "p50": 2.0, "p80": 2.25},
    "passes": 25,
    "threads": 3,
    "device": {"device": "cpu", "name": "x86_64"},
    "inputs": ["2x3x32x32 float32"],
    "steady": True,
    "bound": 1.25,
}


def unit_map(groups: int, units: int = 24, name: str = "net.blocks.{}", kinds: int = 1) -> UnitMap:
    """A row of layers on a stream that stays, every one named by its number; the last group is frozen."""

    def layer(i: int) -> AxisGroup:
        path, places = name.format(i), np.arange(units)[:, None]
        tap = Tap((CallSite(f"{path}.down"),), Side.INPUT, 1, units, places, (Axis(f"{path}.down.weight", 1),))
        axes = (
            GroupAxis(Axis(f"{path}.weight", 0), units, places),
            GroupAxis(Axis(f"{path}.down.weight", 1), units, places, Silence.ZERO),
        )
        frozen = "pruned differs from masked by 3.2e-01" if i == groups else None
        return AxisGroup(path, ("channel", "head", "neuron")[i % kinds], units, axes, (tap,), frozen=frozen)

    made = tuple(layer(i) for i in range(groups + 1))
    extents = (*(Extent(units, ((i, 1),)) for i in range(groups + 1)), Extent(7, ()))
    terms = tuple(CostTerm(float(2 + i % 3), (i, groups + 1)) for i in range(groups + 1))
    shapes = {axis.axis.tensor: (units, 7) if axis.axis.dim == 0 else (7, units) for g in made for axis in g.axes}
    classes = {group.name: "Conv2d" for group in made}
    notes = ("traced on <two> inputs",)
    return UnitMap("Net", made, (), extents, terms, terms, (), shapes, notes=notes, classes=classes)


def scored(groups: int = 12, **of: Any) -> fk.Scores:
    units, rng = unit_map(groups, **of), np.random.default_rng(0)

    def signal() -> tuple[Any, ...]:
        drawn = [rng.lognormal(sigma=1.5, size=g.units) / 1e4 for g in units.groups]
        return tuple(d if g.frozen is None else np.zeros(0) for d, g in zip(drawn, units.groups, strict=True))

    provenance = {"seed": 5, "samples": 640, "classes": {"0": 320, "1": 320}, "seconds": {"total": 1.2345}}
    signals = {name: signal() for name in ("wasserstein", "taylor", "residual")}
    return fk.Scores.of(fk.Scores(fk.UnitMap.of(units), signals, {}, provenance))


def reported(scores: fk.Scores, **asked: Any) -> fk.Report:
    """A report with everything that one can have."""
    plan = scores.plan(**(asked or {"keep_params": 0.6}))
    curve = [
        {"method": method, "seed": seed, "budget": budget, "by": "keep_params", "params": int(budget * 5000),
         "flops": budget * 5e7, "accuracy": 0.97 - loss * (1 - budget) ** 2 - 0.01 * seed, "seconds": 1.5}
        for method, loss in (("residual", 0.25), ("wasserstein", 0.5)) for seed in (0, 1) for budget in (0.9, 0.6, 0.3)
    ]  # fmt: skip
    return fk.summarise(
        plan,
        scores=scores,
        before={"accuracy": 0.975, "loss": 0.125},
        after={"accuracy": 0.9625, "loss": 0.25},
        healed={"accuracy": 0.97},
        stages={"trace and score": 12.3456, "plan": 0.0123},
        timing=TIMING,
        curve=curve,
        environment={"processor": "A processor", "cores": 4, "threads": 3, "seeds": {"scoring": 5}},
        compensation="least_squares",
    )


def bare(scores: fk.Scores) -> fk.Report:
    """What a file gives: without plan and scores, timing, budgets, environment."""
    full = reported(scores)
    return replace(full, plan=None, timing={}, curve=(), environment={}, healed={})


def uniform(scores: fk.Scores) -> fk.Report:
    units = scores.units
    gone = [np.arange(6 if group.frozen is None else 0) for group in units.groups]
    plan = fk.Plan.of(build(units, gone, {"keep_params": 0.75, "allocation": "uniform", "removal": "random"}))
    return fk.summarise(plan, scores=scores)
