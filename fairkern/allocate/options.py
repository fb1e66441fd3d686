"""What a caller may ask of allocation: checked once, at the edge."""

from __future__ import annotations

import difflib
import enum
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from fairkern.allocate.groups import Group
from fairkern.errors import InputError
from fairkern.options import choose, mapping, names, near, real, whole, with_parents
from fairkern.plans.serving import serving
from fairkern.types import AxisGroup, IndexArray, UnitMap

Signal = str | Callable[[Group], Any]
"""A name in `scores.signals`, "random", or a function of a group that returns a score per unit, set after set."""

_MOST = 2**31  # whole numbers of units; no dimension is longer


class Allocation(enum.Enum):
    """How the share to remove is spread over the groups."""

    TOD = "tod"
    UNIFORM = "uniform"
    GLOBAL = "global"
    NORMALIZED = "normalized"
    PRICED = "priced"

    @property
    def pools(self) -> bool:
        """Whether groups are held against each other by the removal signal."""
        return self in (Allocation.GLOBAL, Allocation.NORMALIZED, Allocation.PRICED)


class Target(enum.Enum):
    """What the plan is solved for."""

    TOD = "tod"
    PARAMS = "keep_params"
    FLOPS = "keep_flops"
    LATENCY = "keep_latency"
    DROP = "drop"


class LimitOptions(TypedDict, total=False):
    """Keywords that say how far any group may be cut; see `Planning`."""

    round_to: int | Mapping[str, int]
    max_remove: float
    min_keep: int
    ignore: Iterable[str]
    serve: str | None


class PlanningOptions(LimitOptions, total=False):
    """Keywords of everything that plans; see `Planning`."""

    allocation: str | None
    removal: Signal | None
    protect: Signal


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How a target is met, with the one place where defaults stand. `allocate.allocate` says what each means."""

    allocation: str | None = None
    removal: Signal | None = None
    protect: Signal = "taylor"
    round_to: int | Mapping[str, int] = 1
    max_remove: float = 0.99
    min_keep: int = 1
    ignore: Iterable[str] = ()
    serve: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for an option of the wrong kind or out of range."""
        if self.allocation is not None:
            choose(Allocation, "allocation", self.allocation)
        share = real("max_remove", self.max_remove, "a number between 0 and 1")
        if not 0.0 < share < 1.0:
            raise InputError(
                f"max_remove={self.max_remove!r} is not a share of a group; expected a number between 0 and 1"
            )
        checked = {
            "max_remove": share,
            "min_keep": whole("min_keep", self.min_keep, 1, _MOST),
            "round_to": _divisors(self.round_to),
            "ignore": names("ignore", self.ignore, "['head', 'layer4.*']"),
            "serve": None if (asked := serving(self.serve)) is None else asked.name,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _divisors(given: Any) -> int | dict[str, int]:
    if not isinstance(given, Mapping):
        return whole("round_to", given, 1, _MOST)
    return by_kind("round_to", given, "{'neuron': 128, 'head': 1}")


def by_kind(name: str, given: Any, example: str) -> dict[str, int]:
    """Whole numbers, at least 1, by kind of unit. Raises InputError for what is no dictionary of those."""
    mapping(name, given, f"whole numbers by kind of unit, for example {example}")
    return {kind: whole(f"{name}[{kind!r}]", number, 1, _MOST) for kind, number in given.items()}


def check_kinds(units: UnitMap, name: str, given: Iterable[str]) -> None:
    """Raises InputError for a kind of unit that the map does not have."""
    known = sorted({group.kind for group in units.groups} | {kept.kind for kept in units.kept})
    for kind in given:
        if kind not in known:
            raise InputError(f"{name} names the kind {kind!r}, which {units.model} does not have{near(kind, known)}")


def refuse_unknown(function: str, options: Mapping[str, Any], *allowed: Iterable[str]) -> None:
    """TypeError, as for a function that lists its keywords, unless all of these options are among those `allowed`."""
    known = sorted({name for group in allowed for name in group})
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"options are {', '.join(known)}"
        raise TypeError(f"{function} got an unexpected keyword argument {unknown!r}; {hint}")


@dataclass(frozen=True)
class Limits:
    """How far a group may be cut: arrays `[groups]` of whole units.

    A group's removed count is 0 or `first, first + step, first + 2·step, …`, at most `most`.
    """

    most: IndexArray
    first: IndexArray
    step: IndexArray


def parse_target(
    allocation: Allocation,
    tod: Any,
    keep_params: Any,
    keep_flops: Any,
    keep_latency: Any = None,
    drop: Any = None,
) -> tuple[Target, Any]:
    """The one target that was given, and its value: a number, or whole numbers by kind of unit."""
    given = {
        Target.TOD: tod,
        Target.PARAMS: keep_params,
        Target.FLOPS: keep_flops,
        Target.LATENCY: keep_latency,
        Target.DROP: drop,
    }
    named = [(target, value) for target, value in given.items() if value is not None]
    if len(named) != 1:
        what = " and ".join(target.value for target, _ in named) if named else "none of them"
        raise InputError(f"give exactly one of {', '.join(f'{target.value}=' for target in Target)}; got {what}")
    target, value = named[0]
    if target is Target.DROP:
        counts = by_kind("drop", value, "{'expert': 2}")
        if not counts:
            raise InputError("drop={} says of no kind of unit how many go; give for example {'expert': 2}")
        return target, counts
    number = real(target.value, value, "a number from 0 to 1")
    if target is Target.TOD:
        if allocation is not Allocation.TOD:
            raise InputError(
                f"tod= has no meaning with allocation={allocation.value!r}; use a budget: keep_params=, keep_flops="
            )
        if not 0.0 <= number <= 1.0:
            raise InputError(f"tod={value!r} is not a tolerance; expected a number from 0 to 1")
    elif not 0.0 < number <= 1.0:
        raise InputError(f"{target.value}={value!r} is not a share; expected a number above 0, at most 1")
    return target, number


def limits(
    units: UnitMap, ignored: frozenset[int], asked: Planning, multiples: Mapping[int, int] | None = None
) -> Limits:
    """`max_remove`, `min_keep` and `round_to` as counts per group; `multiples` of units that have to stay besides."""
    share, keep = asked.max_remove, asked.min_keep
    divisors = asked.round_to if isinstance(asked.round_to, Mapping) else {}
    common = 1 if isinstance(asked.round_to, Mapping) else asked.round_to
    check_kinds(units, "round_to", divisors)
    count = len(units.groups)
    most, first, step = np.zeros(count, np.int64), np.ones(count, np.int64), np.ones(count, np.int64)
    for g in units.prunable:
        group = units.groups[g]
        multiple, width = divisors.get(group.kind, common), produced_positions(group)
        own = (multiples or {}).get(g, 1)
        step[g] = math.lcm(multiple // math.gcd(multiple, width), group.multiple, own)
        first[g] = group.units % step[g] or step[g]
        if g not in ignored:
            # 0.29 · 100 is 28.999…96 in floating point, and the caller meant 29
            most[g] = max(0, min(math.floor(share * group.units + 1e-9), group.units - max(keep, group.least)))
    return Limits(most, first, step)


def produced_positions(group: AxisGroup) -> int:
    """How many positions a unit has where it is made."""
    produced = [a for a in group.axes if not a.consumer] or list(group.axes)
    return max(1, produced[0].positions.shape[1]) if produced else 1


def ignored_groups(units: UnitMap, patterns: Iterable[str]) -> frozenset[int]:
    """Groups that the patterns protect.

    A pattern (`fnmatch`, case-sensitive) is held against the group's name and against the modules that produce
    its units together with their parents: `layer4` and `layer4.*` both protect all that layer4 produces.

    Raises:
        InputError: a pattern that matches no group and no module of the model.
    """
    own = [{group.name}.union(*map(with_parents, group.producer_modules)) for group in units.groups]
    modules = set().union(*(with_parents(tensor.rpartition(".")[0]) for tensor in units.shapes))
    known = sorted(modules.union(*own) - {""})
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise InputError(f"ignore pattern {pattern!r} matches no group and no module{near(pattern, known)}")
    return frozenset(
        g
        for g, named in enumerate(own)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in named)
    )
