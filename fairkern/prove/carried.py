"""The verdict of a proof on a smaller sibling, carried over to the map of the model: group by group, by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from fairkern.model.attributes import read_attribute
from fairkern.prove.alike import Alike, NoSibling
from fairkern.types import AxisGroup, Blocks, Branch, IndexArray, SizeAttribute, SizeSite, Tap, UnitMap

OF_SIBLING = "in the smaller sibling that was proven"
NO_TWIN = "nothing in the smaller sibling corresponds to it, so nothing was proven for it"
NOT_CUT = "its twin in the smaller sibling has no unit to spare, so nothing was proven for it"

_Name = Callable[[str], str]


def same_operators(mine: Mapping[str, Sequence[str]], its: Mapping[str, Sequence[str]], alike: Alike) -> None:
    """Raises NoSibling where the code of a module called other operators than its twin's."""
    for path, called in mine.items():
        if tuple(its.get(alike.name(path), ())) != tuple(called):
            raise NoSibling(f"the code of {path or 'the model'} runs another way in it")


class Twins:
    """Which group of a sibling's map each group of the model's map corresponds to.

    Their axes, taps, sides and silences are the same by name, block numbers left open, and they reach through one
    block, several or all of a list in both.
    """

    def __init__(self, units: UnitMap, sibling: UnitMap, alike: Alike) -> None:
        self._units, self._sibling, self._alike = units, sibling, alike
        its = _by_form(sibling, lambda path: path, alike, sibling=True)
        self.of: dict[int, int] = {}
        for form, found in _by_form(units, alike.name, alike, sibling=False).items():
            twins = its.get(form, {})
            for members in found.values():
                for there in twins.values():
                    if len(twins) == 1 and len(there) == len(members):
                        self.of.update(zip(members, there, strict=True))

    def reasons(self, verdict: UnitMap) -> dict[int, str]:
        """Why groups stay, by the verdict on their twins."""
        found = {}
        for g, group in enumerate(self._units.groups):
            if group.frozen is not None:
                continue
            twin = verdict.groups[self.of[g]] if g in self.of else None
            if twin is None:
                found[g] = NO_TWIN
            elif twin.frozen is not None:
                found[g] = f"{OF_SIBLING}: {twin.frozen}"
            elif twin.units <= twin.least:
                found[g] = NOT_CUT
        return found

    def groups_of(self, groups: Iterable[int]) -> set[int]:
        """The model's groups that correspond to any of these."""
        wanted = set(groups)
        return {g for g, twin in self.of.items() if twin in wanted}

    def follow(self, extent: int, its: int) -> bool:
        """Whether a size of the model is that of the sibling: of the same groups, all of it or a part in both."""
        mine, there = self._units.extents[extent], self._sibling.extents[its]
        known = all(g in self.of for g, _ in mine.parts)
        shares = sorted((self.of[g], per_unit > 1) for g, per_unit in mine.parts) if known else None
        whole = self._all(self._units, extent) == self._all(self._sibling, its)
        parts = sorted((g, per_unit > 1) for g, per_unit in there.parts)
        return (
            shares is not None
            and {g for g, _ in shares} == {g for g, _ in parts}
            and whole
            and ((mine.unit is None) == (there.unit is None))
        )

    @staticmethod
    def _all(units: UnitMap, extent: int) -> bool:
        e = units.extents[extent]
        return sum(per_unit * units.groups[g].units for g, per_unit in e.parts) == e.length

    def attributes(
        self, model: nn.Module, candidates: Iterable[SizeAttribute], verdict: UnitMap
    ) -> tuple[tuple[SizeAttribute, ...], set[int]]:
        """The attributes that follow, as the sibling's were proven to; and groups of which one should that does not."""
        its: dict[tuple[str, str], list[SizeAttribute]] = defaultdict(list)
        for a in verdict.attributes:
            its[a.module, a.attribute].append(a)
        found: dict[SizeAttribute, None] = {}
        settled: set[tuple[str, str]] = set()
        for a in candidates:
            twins = its.get((self._alike.name(a.module), a.attribute), [])
            twin = next((t for t in twins if self.follow(a.extent, t.extent)), None)
            if twin is not None:
                found[replace(a, observed=twin.observed)] = None
                settled.add((a.module, a.attribute))
        lost: set[int] = set()
        by_twin = defaultdict(list)
        for path, _ in model.named_modules():
            by_twin[self._alike.name(path)].append(path)
        for (module, attribute), twins in its.items():
            for path in by_twin[module]:
                if (path, attribute) in settled or not any(verdict.extents[t.extent].parts for t in twins):
                    continue
                sizes = self._sizes(path, read_attribute(model.get_submodule(path), attribute), twins)
                if len(sizes) == 1:
                    found[SizeAttribute(path, attribute, sizes[0], observed=twins[0].observed)] = None
                else:
                    lost |= self.groups_of(g for t in twins for g in verdict.follows(t.extent))
        return tuple(found), lost

    def _sizes(self, path: str, value: object, twins: Sequence[SizeAttribute]) -> list[int]:
        """The sizes of so many that are what the twins' are, of groups in the blocks that a module lies in."""
        around = set(self._alike.blocks(path))
        return [
            e
            for e, extent in enumerate(self._units.extents)
            if extent.length == value
            and any(self.follow(e, twin.extent) for twin in twins)
            and all(around <= self._where(g) for g, _ in extent.parts)
        ]

    def _where(self, g: int) -> set[tuple[str, str]]:
        paths = _paths(self._units, self._units.groups[g])
        return {block for path in paths for block in self._alike.blocks(path)}

    def sites(
        self, model: nn.Module, candidates: Iterable[SizeSite], verdict: UnitMap
    ) -> tuple[tuple[SizeSite, ...], set[int]]:
        """The size sites that the sibling was proven with; and groups that one follows which the model has not."""
        its = {(s.module, s.at, s.call, s.function, s.place): s for s in verdict.sites}
        found: list[SizeSite] = []
        there: dict[tuple[object, ...], set[str]] = defaultdict(set)
        for s in candidates:
            key = (self._alike.name(s.module), s.at, s.call, s.function, s.place)
            twin = its.get(key)
            if twin is not None and self.follow(s.extent, twin.extent):
                found.append(replace(s, outright=twin.outright))
                there[key].add(s.module)
        wanted = defaultdict(set)
        for path, _ in model.named_modules():
            wanted[self._alike.name(path)].add(path)
        lost = [verdict.follows(s.extent) for key, s in its.items() if there[key] != wanted[s.module]]
        return tuple(found), self.groups_of(g for groups in lost for g in groups)

    def blocks(self, verdict: UnitMap) -> tuple[dict[str, Blocks], set[int]]:
        """The lists whose modules go with their branches, emptied where the sibling's are; and groups of branches in
        lists that are not the sibling's."""
        found, lost = {}, set[int]()
        number = {group.name: g for g, group in enumerate(self._units.groups)}
        for path, held in self._units.blocks.items():
            twin, traced = verdict.blocks.get(self._alike.name(path)), self._sibling.blocks.get(self._alike.name(path))
            if twin is None or traced is None or _form_of(held, self._alike.name) != _form_of(traced, str):
                lost |= {number[name] for units in held.branches for name, _ in units if name in number}
                held = replace(held, branches=((),) * len(held.names))
            elif not any(twin.branches):
                held = replace(held, branches=((),) * len(held.names))
            found[path] = held
        return found, lost


def _form_of(held: Blocks, name: _Name) -> Hashable:
    numbers = frozenset((n.within, n.attribute) for n in held.numbers)
    pairs = (frozenset((name(module), attribute) for module, attribute in those) for those in (held.counts, held.rows))
    return numbers, frozenset(held.kinds), frozenset(bool(b) for b in held.branches), *pairs


def _by_form(units: UnitMap, name: _Name, alike: Alike, sibling: bool) -> dict[Hashable, dict[Hashable, list[int]]]:
    """Groups by what they are but for sizes and block numbers, and then by the blocks that they lie in."""
    lists = _lists(units, alike, sibling)
    found: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for g, group in enumerate(units.groups):
        within: dict[str, set[str]] = defaultdict(set)
        for path in _paths(units, group):
            for at, entry in _through(path, alike, sibling):
                within[at].add(entry)
        reach = frozenset((at, _amount(len(entries), lists[at])) for at, entries in within.items())
        where = frozenset((at, entry) for at, entries in within.items() for entry in entries)
        found[_form(units, group, name), reach][where].append(g)
    return found


def _through(path: str, alike: Alike, sibling: bool) -> Iterable[tuple[str, str]]:
    return alike.its_blocks(path) if sibling else alike.blocks(path)


def _lists(units: UnitMap, alike: Alike, sibling: bool) -> dict[str, int]:
    """By the sibling's name of a list: how many entries it has."""
    if sibling:
        return {alike.name(path): len(set(pairs.values())) for path, pairs in alike.entries.items()}
    return {alike.name(path): len(pairs) for path, pairs in alike.entries.items()}


def _amount(blocks: int, of: int) -> str:
    return "one" if blocks == 1 else "all" if blocks == of else "several"


def _paths(units: UnitMap, group: AxisGroup) -> set[str]:
    held = {a.axis.tensor for a in group.axes if a.axis.tensor not in units.branches}
    parts = (p.module for a in group.axes for b in units.branches.get(a.axis.tensor, ()) for p in b.parts)
    return {*held, *parts}


def _form(units: UnitMap, group: AxisGroup, name: _Name) -> Hashable:
    """What a group is, but for sizes."""
    branched = any(a.axis.tensor in units.branches for a in group.axes)
    if branched:
        branches = (b for a in group.axes for b in units.branches[a.axis.tensor])
        return "branches", frozenset(_branch(b, name) for b in branches)
    axes = frozenset((name(a.axis.tensor), a.axis.dim, a.silence, _layout(a.positions, a.length)) for a in group.axes)
    taps = frozenset(_tap(tap, name) for tap in group.taps)
    return group.kind, group.units > 1, group.sets > 1, group.blocks > 1, axes, taps


def _tap(tap: Tap, name: _Name) -> Hashable:
    sites = frozenset((name(s.module), name(s.weight), s.argument) for s in tap.sites)
    weights = frozenset((name(axis.tensor), axis.dim) for axis in tap.weights)
    return sites, tap.side, tap.dim, weights, _layout(tap.positions, tap.length)


def _layout(positions: IndexArray, length: int) -> Hashable:
    """How units lie on an axis, but for sizes: side by side or spread, in their order or another, from the start, all
    over it. Which factor of a view carries the units, and what a fixed number cuts off, may depend on sizes."""
    starts, first = np.diff(positions[:, 0]), np.diff(positions[0])
    return (
        bool((first == 1).all()),
        bool((first == 1).any()),
        bool((starts == starts[:1]).all() and (starts > 0).all()),
        bool(positions.min() == 0),
        positions.size == length,
        positions.shape[1] > 1,
    )


def _branch(branch: Branch, name: _Name) -> Hashable:
    parts = tuple(
        (name(p.module), p.source, p.dim, p.size is None, p.passes, p.entries, p.place, p.extent is None)
        for p in branch.parts
    )
    return parts, branch.dim
