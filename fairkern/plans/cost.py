"""Parameters and FLOPs as functions of how many units every group loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fairkern.types import CostTerm, Extent, FloatArray, IndexArray, UnitMap

Order = Mapping[int, IndexArray]  # group → its units in the order in which they go


@dataclass(frozen=True)
class _Pairs:
    """(term, group) pairs of one arity: which products move with a group, and how far each factor moves per unit."""

    group: IndexArray  # [pairs]
    index: IndexArray  # [arity, pairs] extents of the product
    weight: FloatArray  # [arity, pairs] positions per unit of the group
    coefficient: FloatArray  # [pairs]


class _Products:
    """Terms of one arity: `coefficient[t] · Π_k extent[index[k, t]]`."""

    def __init__(self, terms: dict[tuple[int, ...], float], parts: Sequence[dict[int, float]]) -> None:
        self.index = np.array(list(terms), dtype=np.int64).T  # [arity, terms]
        self.coefficient = np.array(list(terms.values()), dtype=np.float64)
        self._parts = parts

    @cached_property
    def pairs(self) -> _Pairs:
        """Made when first asked for: an evaluation needs none."""
        keys = [tuple(key) for key in self.index.T.tolist()]
        touched = [(t, g) for t, key in enumerate(keys) for g in sorted(set().union(*(self._parts[e] for e in key)))]
        term = np.array([t for t, _ in touched], dtype=np.int64)
        weight = [[self._parts[e].get(g, 0) for e in keys[t]] for t, g in touched]
        return _Pairs(
            group=np.array([g for _, g in touched], dtype=np.int64),
            index=self.index[:, term],
            weight=np.array(weight, dtype=np.float64).T,
            coefficient=self.coefficient[term],
        )


class Cost:
    """`Σ coefficient · Π extents` of a UnitMap, compiled once and evaluated for many removals.

    Extents without parts are folded into the coefficients, equal extents and equal products are merged. As long
    as coefficients are whole and the total stays below 2⁵³, every value is exact, whatever the order of summation.

    Args:
        units: the map whose extents the terms index.
        terms: `units.params` or `units.flops`.
        order: per group the units (of each set) in the order in which they go, so that it is known what a count leaves
            of those that differ (experts of a list); units that are not there stay. Of a group that is not there every
            unit counts as much as the others: 1/n of it goes with each.
    """

    def __init__(self, units: UnitMap, terms: Sequence[CostTerm], order: Order | None = None) -> None:
        self.groups = len(units.groups)
        factors = [_canonical(extent) for extent in units.extents]
        number: dict[Extent, int] = {}
        merged: dict[tuple[int, ...], float] = {}
        for term in terms:
            coefficient = float(term.coefficient)
            key = []
            for e in term.extents:
                if factors[e].parts:
                    key.append(number.setdefault(factors[e], len(number)))
                else:
                    coefficient *= factors[e].length
            product = tuple(sorted(key))
            merged[product] = merged.get(product, 0.0) + coefficient
        self.constant = merged.pop((), 0.0)
        self._length = np.array([key.length for key in number], dtype=np.float64)
        moving = [_weights(key, units, order or {}) for key in number]
        self._part_group = np.array([g for parts in moving for g in parts], dtype=np.int64)
        self._part_weight = np.array([w for parts in moving for w in parts.values()], dtype=np.float64)
        self._part_start = np.concatenate(([0], np.cumsum([len(parts) for parts in moving])[:-1])).astype(np.int64)
        self._alone = _Alone.of(list(number), units, order or {})
        by_arity: dict[int, dict[tuple[int, ...], float]] = {}
        for product, coefficient in merged.items():
            by_arity.setdefault(len(product), {})[product] = coefficient
        self._products = [_Products(by_arity[arity], moving) for arity in sorted(by_arity)]

    def _extents(self, removed: IndexArray) -> FloatArray:
        if not self._products:
            return self._length
        extents = self._length - np.add.reduceat(self._part_weight * removed[self._part_group], self._part_start)
        alone = self._alone
        extents[alone.index] = removed[alone.group] <= alone.turn
        return extents

    def __call__(self, removed: IndexArray) -> float:
        """The cost when group `g` loses `removed[g]` units; `removed` is an integer array `[groups]`."""
        extents = self._extents(removed)
        total = self.constant
        for block in self._products:
            total += float(block.coefficient @ extents[block.index].prod(axis=0))
        return total

    def change(self, removed: IndexArray, returned: IndexArray) -> FloatArray:
        """By how much the cost grows when each group, alone, gets `returned[g]` of its units back.

        Both arguments are integer arrays `[groups]`; negative `returned` removes more. O(terms · groups per term),
        not O(terms · groups). Returns float64 `[groups]`.
        """
        extents = self._extents(removed)
        growth = np.zeros(self.groups)
        for block in self._products:
            pairs = block.pairs
            before = extents[pairs.index]
            after = before + pairs.weight * returned[pairs.group]
            if len(self._alone.index):
                # a unit's own extent moves only with its group, and then all at once
                then = extents.copy()
                then[self._alone.index] = (removed - returned)[self._alone.group] <= self._alone.turn
                own = np.isin(pairs.index, self._alone.index) & (pairs.weight != 0)
                after = np.where(own, then[pairs.index], after)
            difference = pairs.coefficient * (after.prod(axis=0) - before.prod(axis=0))
            growth += np.bincount(pairs.group, weights=difference, minlength=self.groups)
        return growth


@dataclass(frozen=True)
class _Alone:
    """Extents that are 1 as long as one unit stays: `removed[group] <= turn`."""

    index: IndexArray
    group: IndexArray
    turn: IndexArray

    @classmethod
    def of(cls, keys: Sequence[Extent], units: UnitMap, order: Order) -> _Alone:
        found = []
        for i, key in enumerate(keys):
            group = key.parts[0][0]
            if key.unit is not None and group in order:
                part, unit = divmod(key.unit, units.groups[group].units)
                row = order[group] if units.groups[group].sets == 1 or not order[group].size else order[group][part]
                place = np.flatnonzero(row == unit)
                found.append((i, group, int(place[0]) if len(place) else np.iinfo(np.int64).max))
        columns = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return cls(*columns)


def _weights(key: Extent, units: UnitMap, order: Order) -> dict[int, float]:
    """How far an extent moves with each unit of a group."""
    if key.unit is None:
        return {g: float(w) for g, w in key.parts}
    group = key.parts[0][0]
    return {group: 1.0 if group in order else 1.0 / units.groups[group].units}


def _canonical(extent: Extent) -> Extent:
    """The same, its parts merged by group."""
    weights: dict[int, int] = {}
    for group, per_unit in extent.parts:
        weights[group] = weights.get(group, 0) + per_unit
    return replace(extent, parts=tuple(sorted((g, w) for g, w in weights.items() if w)))


def told_apart(units: UnitMap) -> set[int]:
    """Groups of whose units it matters to the costs which of them go."""
    return {group for extent in units.extents if extent.unit is not None for group, _ in extent.parts}


def adds_up(units: UnitMap) -> bool:
    """Whether a unit costs the same, whatever else goes: no parameter's size is a product of two that shrink.

    So it is where all layers hang on a stream that stays (transformers), and not in a chain, where a unit costs less
    the fewer units the next layer has. Whole experts and branches are left aside: those that stay keep their sizes.

    Example:
        >>> from fairkern.types import AxisGroup
        >>> groups = tuple(AxisGroup(name, "neuron", 8, axes=(), taps=()) for name in "ab")
        >>> extents = (Extent(8, ((0, 1),)), Extent(8, ((1, 1),)), Extent(3, ()))
        >>> chain = UnitMap("Net", groups, (), extents, (CostTerm(1.0, (0, 1)),), (), (), {})
        >>> stream = UnitMap("Net", groups, (), extents, (CostTerm(1.0, (0, 2)), CostTerm(1.0, (1, 2))), (), (), {})
        >>> adds_up(chain), adds_up(stream)
        (False, True)
    """
    whole = {g for g in units.prunable if any(tap.side.whole for tap in units.groups[g].taps)} | set(units.branched)
    moving = set(units.prunable) - whole
    shrinks = [any(group in moving for group, _ in extent.parts) for extent in units.extents]
    return all(sum(shrinks[e] for e in term.extents) <= 1 for term in units.params)


def extents_after(units: UnitMap, removed: IndexArray) -> list[int]:
    """Every extent of the map that is not one unit's when group `g` loses `removed[g]` units."""
    return [e.length - sum(int(removed[g]) * per_unit for g, per_unit in e.parts) for e in units.extents]


def per_unit(units: UnitMap) -> tuple[FloatArray, FloatArray]:
    """Parameters and FLOPs that removing one unit of each group saves (on average), the other groups whole.

    Returns:
        Two float64 arrays `[groups]`: parameters, FLOPs of one forward pass over the example inputs.

    Example:
        >>> from fairkern.types import AxisGroup
        >>> hidden = AxisGroup("fc1", "neuron", 8, axes=(), taps=())
        >>> extents = (Extent(8, ((0, 1),)), Extent(3, ()))
        >>> terms = (CostTerm(1.0, (0, 1)), CostTerm(1.0, (0,)))  # a weight [8, 3] and its bias
        >>> per_unit(UnitMap("Net", (hidden,), (), extents, terms, (), (), {}))[0]
        array([4.])
    """
    whole = np.zeros(len(units.groups), dtype=np.int64)
    params, flops = (-Cost(units, terms).change(whole, whole - 1) for terms in (units.params, units.flops))
    return params, flops
