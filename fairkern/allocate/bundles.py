"""Groups that move together, and how far they may: what one step takes away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairkern.allocate.options import Limits, produced_positions
from fairkern.plans.serving import Tie
from fairkern.types import FloatArray, IndexArray, UnitMap


@dataclass(frozen=True)
class Bundle:
    """Groups that lose equal shares. A part is `units[i]` units of each set of `groups[i]`."""

    groups: tuple[int, ...]
    units: tuple[int, ...]
    parts: IndexArray  # how many parts may go, ascending, without 0

    def price(self, needs: Mapping[int, FloatArray], weights: FloatArray) -> FloatArray:
        """Per number of parts, from 1 up, the mean need of the units that go with the last of them.

        `needs[g][k − 1]`: of the k-th unit of a group, of each of its sets; `weights`: of a unit of each group in the
        mean, as a rule how many sets it has. So a bundle's step and one of a single group are told by one threshold:
        both say what a unit is worth. It ascends where the members' needs do.
        """
        at = [needs[g][size - 1 :: size] for g, size in zip(self.groups, self.units, strict=True)]
        if len(at) == 1:
            return at[0]
        weight = np.array([size * weights[g] for g, size in zip(self.groups, self.units, strict=True)])
        return np.asarray(weight @ np.array(at) / weight.sum())


@dataclass(frozen=True)
class Levels:
    """How many units every group has lost when its bundle has taken so many steps."""

    bundle: IndexArray  # [groups] −1 where it stays
    size: IndexArray  # [groups] units of one part
    start: IndexArray  # [bundles] where its numbers of parts begin
    parts: IndexArray  # per bundle 0 and then the numbers of parts that may go

    @classmethod
    def of(cls, bundles: Sequence[Bundle], groups: int) -> Levels:
        bundle, size = np.full(groups, -1, dtype=np.int64), np.zeros(groups, dtype=np.int64)
        for b, made in enumerate(bundles):
            bundle[list(made.groups)], size[list(made.groups)] = b, made.units
        lengths = [len(made.parts) + 1 for made in bundles]
        nothing = np.zeros(1, dtype=np.int64)
        parts = np.concatenate([nothing, *(p for made in bundles for p in (nothing, made.parts))])[1:]
        return cls(bundle, size, np.cumsum([0, *lengths])[:-1], parts)

    def removed(self, steps: IndexArray) -> IndexArray:
        """`steps`: taken by each bundle, int64 `[bundles]` → units removed, int64 `[groups]`."""
        parts = np.append(self.parts[self.start + steps], 0)  # the last for what stays
        return parts[self.bundle] * self.size


def joined(units: UnitMap, ties: Iterable[Tie], movable: Sequence[int], equal: bool) -> list[Tie]:
    """A tie for every group that may be cut: those that are given, and each other group by itself.

    `equal`: groups of one kind with as many units, each of as many positions, lose the same number.
    """
    tied = {g: tie for tie in ties for g in tie.groups}
    found = list(
        {tie.groups: tie for g in movable for tie in (tied.get(g) or Tie((g,), units.groups[g].units),)}.values()
    )
    if not equal:
        return found
    alike: dict[tuple[str, int, int], int] = {}
    merged: list[Tie | None] = []
    for tie in found:
        marks = [(units.groups[g].kind, units.groups[g].units, produced_positions(units.groups[g])) for g in tie.groups]
        into = sorted({alike[mark] for mark in marks if mark in alike})
        parts = [*(m for i in into if (m := merged[i]) is not None), tie]
        for i in into:
            merged[i] = None
        merged.append(_merged(parts))
        place = len(merged) - 1
        alike |= {mark: place for mark, i in alike.items() if i in into} | dict.fromkeys(marks, place)
    return sorted((tie for tie in merged if tie is not None), key=lambda tie: tie.groups)


def _merged(ties: Sequence[Tie]) -> Tie:
    grain = math.gcd(*(tie.grain for tie in ties))
    groups = tuple(sorted(g for tie in ties for g in tie.groups))
    bound = [(tie.grain, tie.parts) for tie in ties if tie.parts is not None]
    parts = np.arange(1, grain)
    for own, allowed in bound:
        parts = parts[np.isin(parts * (own // grain), allowed)]
    return Tie(groups, grain, parts if bound else None)


def bundle(units: UnitMap, tie: Tie, limit: Limits) -> Bundle:
    """What of a tie the limits of all its groups allow."""
    sizes = tuple(units.groups[g].units // tie.grain for g in tie.groups)
    most = min(int(limit.most[g]) // size for g, size in zip(tie.groups, sizes, strict=True))
    parts = np.arange(1, most + 1) if tie.parts is None else tie.parts[tie.parts <= most]
    for g, size in zip(tie.groups, sizes, strict=True):
        parts = parts[(parts * size - limit.first[g]) % limit.step[g] == 0]
    return Bundle(tie.groups, sizes, parts)
