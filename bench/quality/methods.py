"""fairkern's ways to choose units, by name: a signal or two, and an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

import fairkern as fk
from bench.quality.tasks.task import Task
from fairkern.plans.build import build
from fairkern.plans.cost import per_unit
from fairkern.types import AxisGroup

SAMPLES_PER_CLASS = 32
PROJECTIONS = 32


@dataclass(frozen=True)
class Method:
    """Arguments of `Scores.plan`."""

    name: str
    allocation: str | None
    removal: str
    protect: str = "taylor"


METHODS = (
    Method("residual, global", "global", "residual"),
    Method("residual per parameter, global", "global", "residual per parameter"),
    Method("residual, uniform", "uniform", "residual"),
    Method("ToD (residual, Taylor)", "tod", "residual"),
    Method("FAIR ToD, consumer taps", "tod", "wasserstein"),
    Method("FAIR ToD, paper recipe", "tod", "paper wasserstein", "paper taylor"),
    Method("Taylor, global", "global", "taylor"),
    Method("Taylor, uniform", "uniform", "taylor"),
    Method("L1, normalised", "normalized", "l1"),
    Method("L1, uniform", "uniform", "l1"),
    Method("random, uniform", "uniform", "random"),
)
DEFAULT = Method("default", None, "residual")  # one of the first two: no run of its own, see `summary.with_default`


def score(model: nn.Module, task: Task, seed: int) -> fk.Scores:
    """Every signal that a method asks for, in one object; means and moments from the default recipe."""
    units = fk.trace(model, task.example)
    common = {
        "units": units,
        "samples_per_class": SAMPLES_PER_CLASS,
        "projections": PROJECTIONS,
        "seed": seed,
        "class_of": task.class_of,
        "progress": False,
    }
    scores = fk.score(model, task.calibration, task.loss, gram=True, **common)
    try:
        paper = fk.score(model, task.calibration, task.loss, recipe="paper", **common).signals
    except fk.InputError:  # a recurrent layer returns more than its units; what it hands on is what consumers read
        paper = fk.score(model, task.calibration, task.loss, reduction="signed", **common).signals
    own: Mapping[str, tuple[np.ndarray, ...]] = {
        "paper wasserstein": paper["wasserstein"],
        "paper taylor": paper["taylor"],
        "l1": l1(model, units),
        "random": random(units, seed),
        "residual per parameter": per_parameter(scores.signals["residual"], units),
    }
    return replace(scores, signals={**scores.signals, **own})


def plan(scores: fk.Scores, method: Method, keep_params: float) -> fk.Plan:
    """At most this share of the whole model's parameters."""
    return scores.plan(
        keep_params=keep_params,
        allocation=method.allocation,
        removal=method.removal,
        protect=method.protect,
        max_remove=0.9999,
    )


def l1(model: nn.Module, units: fk.UnitMap) -> tuple[np.ndarray, ...]:
    """Σ |w| over the weights that make a unit, the mean over those tensors; biases and norms do not count."""
    tensors = dict(model.named_parameters())

    def of(group: AxisGroup) -> np.ndarray:
        found = []
        for held in group.axes:
            weight = tensors.get(held.axis.tensor)
            if not held.consumer and weight is not None and weight.ndim > 1:
                sums = weight.detach().abs().double().movedim(held.axis.dim, 0).flatten(1).sum(1).numpy()
                found.append(sums[held.positions].sum(1))
        return np.mean(found, axis=0) if found else np.zeros(group.units)

    return tuple(of(g) if g.frozen is None else np.zeros(0) for g in units.groups)


def per_parameter(signal: Sequence[np.ndarray], units: fk.UnitMap) -> tuple[np.ndarray, ...]:
    """What goes with a unit over the parameters that go with it."""
    params, _ = per_unit(units)
    return tuple(values / max(float(count), 1.0) for values, count in zip(signal, params, strict=True))


def random(units: fk.UnitMap, seed: int) -> tuple[np.ndarray, ...]:
    """Scores drawn evenly from 0 … 1."""
    generator = np.random.default_rng(seed)
    return tuple(generator.random(g.units) if g.frozen is None else np.zeros(0) for g in units.groups)


def cuttable(units: fk.UnitMap) -> float:
    """Share of the parameters that would go if every group kept one unit, or as few as it may."""
    one = [np.arange(g.least, g.units) if g.frozen is None else np.zeros(0, np.int64) for g in units.groups]
    result = build(units, one).result
    return 1.0 - result["params_after"] / result["params_before"]
