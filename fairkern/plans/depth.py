"""What goes with the branches that a plan removes: their modules, blocks that have none left, and what counts those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from fairkern.types import (
    AttributeChange,
    Axis,
    Blocks,
    Branch,
    BranchPart,
    CostTerm,
    IndexArray,
    Numbers,
    Plan,
    PlanAxis,
    RowsChange,
    Silence,
    UnitMap,
    numbered,
)


def removed_parts(plan: Plan) -> list[BranchPart]:
    """The modules of the branches that a plan removes, branch by branch."""
    return [part for branch in removed_branches(plan) for part in branch.parts]


def removed_branches(plan: Plan) -> list[Branch]:
    """The branches that a plan removes."""
    taken = ((plan.branches[a.axis.tensor], a.removed) for a in plan.axes if a.axis.tensor in plan.branches)
    return [found[unit] for found, removed in taken for unit in removed.tolist()]


class Depth:
    """What goes where these units of a map do (`chosen`: per group)."""

    def __init__(self, units: UnitMap, chosen: Sequence[IndexArray]) -> None:
        self._units = units
        self._taken: dict[str, set[int]] = {}
        for g in units.branched:
            if chosen[g].size:
                self._taken[units.groups[g].axes[0].axis.tensor] = set(chosen[g].tolist())
        self.within = tuple(f"{part.module}." for part in self._parts())
        self.blocks = {path: gone for path, held in units.blocks.items() if (gone := self._whole(held)).size}
        self.modules = (
            *self.within,
            *(f"{path}.{units.blocks[path].names[k]}." for path, gone in self.blocks.items() for k in gone.tolist()),
        )

    def _parts(self) -> Iterator[BranchPart]:
        for name, taken in self._taken.items():
            for unit in sorted(taken):
                yield from self._units.branches[name][unit].parts

    def _whole(self, held: Blocks) -> IndexArray:
        """The modules of a list of which every branch goes."""
        gone = [
            k
            for k, own in enumerate(held.branches)
            if own and all(unit in self._taken.get(name, ()) for name, unit in own)
        ]
        return np.array(gone, dtype=np.int64)

    @cached_property
    def absent(self) -> set[int]:
        """Groups that lie in branches which go."""
        if not self.within:
            return set()
        groups = enumerate(self._units.groups)
        return {g for g, group in groups if all(a.axis.tensor.startswith(self.within) for a in group.axes)}

    def spared(self, chosen: Sequence[IndexArray], none: IndexArray) -> list[IndexArray]:
        """The units that go, but for those that lie in a branch which goes itself."""
        return [none if g in self.absent else removed for g, removed in enumerate(chosen)]

    def left_over(self) -> list[CostTerm]:
        """Parameters of blocks that go, also those that are in none of their branches."""
        gone = self.modules[len(self.within) :]
        return [
            term for name, term in zip(self._units.shapes, self._units.params, strict=False) if name.startswith(gone)
        ]

    def axes(self) -> Iterator[PlanAxis]:
        """Lists that lose modules."""
        for path, gone in self.blocks.items():
            yield PlanAxis(Axis(path, 0), len(self._units.blocks[path].names), gone, Silence.NONE)

    def branches(self, sizes: Sequence[int]) -> Mapping[str, tuple[Branch, ...]]:
        """All of those of which some go, with the sizes that are left."""

        def sized(part: BranchPart) -> BranchPart:
            return part if part.extent is None else replace(part, size=sizes[part.extent], extent=None)

        def fitted(branch: Branch) -> Branch:
            return replace(branch, parts=tuple(map(sized, branch.parts)))

        return {name: tuple(map(fitted, self._units.branches[name])) for name in self._taken}

    def attributes(self) -> Iterator[AttributeChange]:
        """Numbers of modules in their list, and how many there are."""
        for path, held in self._units.blocks.items():
            gone = set(self.blocks.get(path, np.zeros(0, dtype=np.int64)).tolist())
            for holder, name in held.counts if gone else ():
                yield AttributeChange(holder, name, len(held.names), len(held.names) - len(gone))
            for numbers in held.numbers:
                yield from self._numbered(path, held, gone, numbers)

    def _numbered(self, path: str, held: Blocks, gone: set[int], numbers: Numbers) -> Iterator[AttributeChange]:
        """Those that stay are numbered anew."""
        modules = [f"{path}.{entry}.{numbers.within}".rstrip(".") for entry in held.names]
        stay = [k for k in range(len(modules)) if k not in gone]
        counted = [numbers.values[k] is not None and not f"{modules[k]}.".startswith(self.within) for k in stay]
        for k, number in zip(stay, numbered([held.kinds[k] for k in stay], counted), strict=True):
            before = numbers.values[k]
            if number is not None and before is not None and number != before:
                yield AttributeChange(modules[k], numbers.attribute, before, number)

    def rows(self) -> Iterator[RowsChange]:
        """What holds an entry for every module of a list."""
        for path in self.blocks:
            held = self._units.blocks[path]
            yield from (RowsChange(holder, name, path, len(held.names)) for holder, name in held.rows)
