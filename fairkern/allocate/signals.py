"""Which scores say what goes and what is protected: by name, at random, or from a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairkern import ties
from fairkern.allocate.groups import Group, Known
from fairkern.allocate.options import Allocation, Planning
from fairkern.errors import InputError
from fairkern.options import choose, meant, short
from fairkern.plans.cost import adds_up
from fairkern.types import AxisGroup, FloatArray, Scores, UnitMap

RANDOM, RESIDUAL, TAYLOR, WASSERSTEIN = "random", "residual", "taylor", "wasserstein"
L1, L2, ACTIVATION = "l1", "l2", "activation"
SIGNALS = (L1, L2, ACTIVATION, TAYLOR, WASSERSTEIN, RESIDUAL, RANDOM)
_FROM = {  # what a signal takes that some scores are made without
    WASSERSTEIN: ", or score with classes",
    RESIDUAL: ", or score with gram=True",
    ACTIVATION: ", or score with gram=True",
    L1: ", or score again: these scores were made before it was kept",
    L2: ", or score again: these scores were made before it was kept",
}


def defaults(scores: Scores, allocation: Any, removal: Any, tolerance: bool) -> tuple[Allocation, Any]:
    """The allocation and the removal signal, where they are not given the best that these scores can do.

    With the residual, a second-order saliency (scored with `gram=True`), that is one threshold on it for all groups,
    over what a unit costs where costs add up; a tolerance, or scores without it, take the Tolerance of Difference with
    the Wasserstein signal. Where no classes were compared there is neither: one threshold on the Taylor signal, which
    is in the currency of the loss as well.
    """
    first_order = WASSERSTEIN if _of_classes(scores) else TAYLOR
    best = RESIDUAL if RESIDUAL in scores.signals and not tolerance else first_order
    if allocation is not None:
        kind = choose(Allocation, "allocation", allocation)
    elif tolerance:
        kind = Allocation.TOD
    else:
        asked = removal if isinstance(removal, str) else ""
        pooled = best != WASSERSTEIN if removal is None else best == RESIDUAL == asked
        kind = _pooled(scores.units, best) if pooled else Allocation.TOD
    if removal is None:
        removal = WASSERSTEIN if kind is Allocation.TOD else best
    return kind, removal


def _pooled(units: UnitMap, best: str) -> Allocation:
    return Allocation.PRICED if best == RESIDUAL and adds_up(units) else Allocation.GLOBAL


def _of_classes(scores: Scores) -> bool:
    """Whether classes were compared anywhere."""
    without = scores.provenance.get("no_classes", ())
    return WASSERSTEIN in scores.signals and any(
        scores.units.groups[g].name not in without for g in scores.units.prunable
    )


def is_function(signal: Any) -> bool:
    return callable(signal) and not isinstance(signal, type)


def name_of(signal: Any) -> Any:
    """What a plan records of a signal."""
    return f"function {getattr(signal, '__name__', type(signal).__name__)}" if is_function(signal) else signal


def check_signal(scores: Scores, role: str, signal: Any) -> None:
    """Raises InputError for what is no function and none of the names that these scores know."""
    if is_function(signal) or (isinstance(signal, str) and (signal in scores.signals or signal == RANDOM)):
        return
    choices = ", ".join(repr(s) for s in sorted(scores.signals)) or "none at all"
    known = isinstance(signal, str) and signal in SIGNALS
    more = _FROM[signal] if known else meant(signal, (*scores.signals, RANDOM))
    raise InputError(
        f"{role}={short(signal)} is not among the signals of these scores; they hold {choices}: pass {role}= "
        f"one of those, 'random' or a function{more}"
    )


def check_range(scores: Scores, kind: Allocation, removal: Any, asked: Planning) -> None:
    """Raises InputError where the residual was put in order for smaller plans than these, or for part of a group."""
    known = scores.provenance.get("max_remove", 1.0)
    protects = kind is Allocation.TOD and isinstance(asked.protect, str) and asked.protect == RESIDUAL
    removes = isinstance(removal, str) and removal == RESIDUAL
    if known == 1.0 or not (protects or removes):
        return
    tells = f"these scores tell the units of a group apart as far as {known!r}, which score(max_remove=) was asked for"
    if protects:
        raise InputError(f"protect='residual' reads the order of all units, and {tells}: score again without")
    if kind is Allocation.NORMALIZED:
        raise InputError(f"allocation='normalized' reads the residual of all units, and {tells}: score again without")
    if asked.max_remove > known:
        raise InputError(
            f"max_remove={asked.max_remove!r}, and {tells}: pass max_remove={known!r}, or score again for more"
        )


def read_signal(scores: Scores, role: str, signal: Any) -> dict[int, FloatArray]:
    """The signal's scores for every prunable group, float64 `[units]` or `[sets, units]`, checked to be finite.

    What was measured is without the groups that no input changes, and U without those that were heard in fewer than two
    classes.

    Raises:
        InputError: no such signal, a group without scores or with too many, NaN or Inf.
    """
    units = scores.units
    check_signal(scores, role, signal)
    if is_function(signal):
        known = Known(scores)
        return {g: _checked(units.groups[g], name_of(signal), signal(Group.of(known, g))) for g in units.prunable}
    if signal == RANDOM and RANDOM not in scores.signals:
        seed = int(scores.provenance.get("seed", 0))
        drawn = {g: np.random.default_rng((seed, g)).random(units.groups[g].total) for g in units.prunable}
        return {g: _checked(units.groups[g], RANDOM, values) for g, values in drawn.items()}
    arrays = scores.signals[signal]
    if len(arrays) != len(units.groups):
        raise InputError(f"signal {signal!r} has scores for {len(arrays)} groups; the map has {len(units.groups)}")
    without = set(scores.provenance.get("no_classes", ())) if signal == WASSERSTEIN else set()
    scored = [g for g in units.scored if units.groups[g].name not in without]
    if not scored:
        why = "was heard in fewer than two classes" if without else "is what no input changes"
        raise InputError(f"{role}={signal!r}: every group {why}; use another signal")
    return {g: _checked(units.groups[g], repr(signal), arrays[g]) for g in scored}


def levels(signal: Any, values: dict[int, FloatArray]) -> dict[int, FloatArray]:
    """What stands for these scores of a signal where they are ranked within their group.

    Of what is measured, `fairkern.ties` says which are equal but for the rounding of sums in another order; those get
    one number, and so go by unit index. The residual is in an order already, ties broken; what is drawn, or what a
    function gives, is taken as it is.
    """
    if is_function(signal) or signal in (RANDOM, RESIDUAL) or not values:
        return values
    flat = np.concatenate([v.reshape(-1) for v in values.values()])
    sizes = [v.shape[-1] for v in values.values() for _ in range(v.size // v.shape[-1])]
    parts = np.split(ties.levels(flat, sizes).astype(np.float64), np.cumsum([v.size for v in values.values()])[:-1])
    return {g: part.reshape(v.shape) for (g, v), part in zip(values.items(), parts, strict=True)}


def _checked(group: AxisGroup, name: str, given: Any) -> FloatArray:
    if isinstance(given, Tensor):
        given = given.detach().to("cpu", torch.float64).numpy()
    try:
        values = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"signal {name} of group {group.name!r} gives a {type(given).__name__}; expected numbers"
        ) from None
    if values.shape != (group.total,):
        raise InputError(
            f"signal {name} of group {group.name!r} has shape {values.shape}; expected ({group.total},), "
            "one score per unit"
        )
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"signal {name} of group {group.name!r} is {values[bad]} at unit {bad}; scores must be finite")
    return values if group.sets == 1 else values.reshape(group.sets, group.units)
