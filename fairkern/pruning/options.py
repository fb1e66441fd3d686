"""Options of `prune`: what it hands on, what fits together, what it chooses itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from fairkern import types
from fairkern.allocate import Allocation, Planning, PlanningOptions, Target, parse_target
from fairkern.allocate.signals import ACTIVATION, RESIDUAL
from fairkern.capture.settings import WHOLE
from fairkern.compensate import Compensation
from fairkern.errors import InputError
from fairkern.options import TABLE, flag, function, instance, place, whole
from fairkern.report import Shown
from fairkern.results import PathLike

_BUDGETS = ("keep_params", "keep_flops", "keep_latency")
KEYWORDS = (
    *("tod", *_BUDGETS, "drop", "latency", "iterations"),
    *("compensate", "biases", "inplace", "more", "unused", "depth", "keep_scores", "ranks"),
    *("evaluate", "budgets"),
)
_FITS = (None, Compensation.LEAST_SQUARES, Compensation.SEQUENTIAL, Compensation.JOINT)  # made from second moments


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
    keep_moments: bool | str | os.PathLike[str]
    walk: str
    walk_folder: PathLike | None
    progress: Shown


def planned(options: Mapping[str, Any], *targets: Any) -> tuple[dict[str, Any], Target, Any]:
    """Of some options those of planning, checked, and the one target that was given, with its value."""
    planning = {name: given for name, given in options.items() if name in PlanningOptions.__annotations__}
    asked_of = Planning(**planning).allocation
    return planning, *parse_target(Allocation.TOD if asked_of is None else Allocation(asked_of), *targets)


def fit_together(
    scoring: dict[str, Any],
    planning: Mapping[str, Any],
    target: Target,
    method: Compensation | None,
    labelled: Callable[[], bool],
    keep_scores: bool = False,
) -> None:
    """Choose what the caller left open of `class_of`, `gram` and `keep_moments`, so that it fits what he fixed.

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
    roles = (("removal", removal), ("protect", protect))
    moments = [f"{n}={s!r}" for n, s in roles if _is(s, RESIDUAL) or _is(s, ACTIVATION)]
    if not keep_scores:
        scoring.setdefault("keep_moments", method in _FITS)
    whole = _is(planning.get("protect"), "residual") or planning.get("allocation") == Allocation.NORMALIZED.value
    if "max_remove" in planning and not (keep_scores or whole):
        scoring["max_remove"] = planning["max_remove"]
    if gram is None:
        scoring["gram"] = method in _FITS or bool(moments) or (none and removal is None)
    elif not flag("gram", gram) and moments:
        raise InputError(f"{moments[0]} comes from second moments, which gram=False leaves out: leave out gram=")


def _is(given: Any, name: str) -> bool:
    return isinstance(given, str) and given == name


def check_scoring(scoring: dict[str, Any]) -> None:
    """Of the options of `score` those that are read before it is called, in the form in which they are read."""
    if not isinstance(scoring.get("keep_moments", True), bool):
        scoring["keep_moments"] = place("keep_moments", scoring["keep_moments"])
    if scoring.get("memory_budget") is not None:
        scoring["memory_budget"] = whole("memory_budget", scoring["memory_budget"], 1, WHOLE)
    if scoring.get("samples_of") is not None:
        function("samples_of", scoring["samples_of"], "a function of a batch")


def check_method(method: Compensation | None, scoring: Mapping[str, Any], loader: Iterable[Any], inplace: bool) -> None:
    """Raises InputError where compensation that was asked for will not have what it takes."""
    if method is None or method is Compensation.NONE:
        return
    asked = f"compensate={method.value!r}"
    if method is Compensation.MEAN and _is(scoring.get("recipe"), "paper"):
        raise InputError(f"{asked} folds in means of what consumers read: use recipe='default', not 'paper'")
    if method is not Compensation.MEAN and scoring.get("gram") is False:
        raise InputError(f"{asked} solves from second moments, which gram=False leaves out: leave out gram=")
    if method is not Compensation.MEAN and scoring.get("keep_moments") is False:
        raise InputError(f"{asked} solves from second moments, which keep_moments=False drops: leave out keep_moments=")
    if method.compares and inplace:
        raise InputError(f"{asked} compares with the uncut model: use compensate='least_squares' with inplace=True")
    if method.compares and isinstance(loader, Iterator):
        raise InputError(
            f"{asked} looks at the data again, and this loader can be iterated once only: give a re-iterable one, or "
            "use compensate='least_squares'"
        )


def check_steps(iterations: int, target: Target, latency: types.LatencyTable | None, loader: Iterable[Any]) -> None:
    if latency is not None:
        instance("latency", latency, types.LatencyTable, TABLE)
    if iterations == 1:
        return
    if target in (Target.TOD, Target.DROP):
        raise InputError(
            f"iterations={iterations} needs a budget to approach in steps: give one of "
            f"{', '.join(f'{name}=' for name in _BUDGETS)}, not {target.value}="
        )
    if latency is not None:
        raise InputError("several iterations measure a latency table for the model of every step: leave out latency=")
    if isinstance(loader, Iterator):
        raise InputError(
            f"iterations={iterations} iterates the loader once a step, and this one can be iterated once only; "
            "give a re-iterable loader"
        )


def check_traced(units: types.UnitMap, iterations: int, more: Sequence[Any], depth: bool) -> None:
    if depth and not units.depth:
        raise InputError("depth=True, and units= was traced without it: trace with depth=True, or leave out units=")
    if iterations > 1 and units.more > len(more):
        raise InputError(
            f"iterations={iterations} traces the model anew after every step, and units= was traced with {units.more} "
            f"further example inputs, of which {len(more)} are given: pass those as more= here as well"
        )
