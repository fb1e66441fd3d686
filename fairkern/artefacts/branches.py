"""Branches of residual blocks, and blocks, as plain JSON content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairkern.artefacts.fields import LIMIT, Fields
from fairkern.types import AxisGroup, Blocks, Branch, BranchPart, Numbers, RowsChange


def branches_content(branches: Mapping[str, Sequence[Branch]]) -> dict[str, Any]:
    """Per name of an axis, every branch: dimension and width of what it adds, and its parts."""
    return {
        name: [
            [
                branch.dim,
                branch.width,
                [[p.module, p.source, p.dim, p.size, p.passes, p.entries, p.place, p.extent] for p in branch.parts],
            ]
            for branch in found
        ]
        for name, found in branches.items()
    }


def read_branches(content: Fields, extents: int = 0) -> dict[str, tuple[Branch, ...]]:
    """What `branches_content` wrote; files of an older version have nothing of it."""
    found = {}
    for name, entry in content.get("branches", {}).entries().items():
        found[name] = tuple(_branch(item, extents) for item in entry.items())
        if not found[name]:
            entry.fail("no branch")
    return found


def _branch(entry: Fields, extents: int) -> Branch:
    dim, width, parts = entry.items(3)
    made = []
    for part in parts.items():
        module, source, along, size, passes, entries, place, extent = part.items(8)
        made.append(
            BranchPart(
                module.text(),
                source.text() if isinstance(source.value, str) else source.whole(),
                along.whole(-LIMIT),
                None if size.value is None else size.whole(1),
                passes.flag(),
                entries.whole(),
                place.whole(),
                None if extent.value is None else extent.whole(below=extents),
            )
        )
    if not made:
        parts.fail("a branch without a module")
    return Branch(tuple(made), dim.whole(-LIMIT), width.whole(1))


def blocks_content(blocks: Mapping[str, Blocks]) -> dict[str, Any]:
    """Per list: names, branches of each module, kinds, and what counts the modules."""
    return {
        path: [
            list(held.names),
            [[list(unit) for unit in own] for own in held.branches],
            list(held.kinds),
            [[n.within, n.attribute, list(n.values)] for n in held.numbers],
            *([list(place) for place in places] for places in (held.counts, held.rows)),
        ]
        for path, held in blocks.items()
    }


def read_blocks(content: Fields, groups: Sequence[AxisGroup]) -> dict[str, Blocks]:
    """What `blocks_content` wrote, held against the groups of the map."""
    counts = {group.name: group.units for group in groups if group.kind == "branch"}
    found = {}
    for path, entry in content.get("blocks", {}).entries().items():
        names, branches, kinds, numbers, *places = entry.items(6)
        held = names.names()
        own = []
        for item in branches.items(len(held)):
            taken = []
            for unit in item.items():
                name, number = unit.items(2)
                if name.text() not in counts:
                    name.fail(f"no group of branches is called {name.value!r}")
                taken.append((name.text(), number.whole(below=counts[name.text()])))
            own.append(tuple(taken))
        said = tuple(kind.text() for kind in kinds.items(len(held)))
        counted = tuple(_numbers(item, len(held)) for item in numbers.items())
        found[path] = Blocks(held, tuple(own), said, counted, *(tuple(map(_place, item.items())) for item in places))
    return found


def _numbers(entry: Fields, modules: int) -> Numbers:
    within, attribute, values = entry.items(3)
    return Numbers(within.text(), attribute.text(), tuple(value.optional_whole() for value in values.items(modules)))


def _place(entry: Fields) -> tuple[str, str]:
    module, attribute = entry.items(2)
    return module.text(), attribute.text()


def rows_content(rows: Sequence[RowsChange]) -> list[list[Any]]:
    """[module, attribute, list, how many there are before the cut]."""
    return [[r.module, r.attribute, r.list, r.rows] for r in rows]


def read_rows(content: Fields) -> tuple[RowsChange, ...]:
    """What `rows_content` wrote."""
    found = []
    for entry in content.optional_items("rows"):
        module, attribute, path, rows = entry.items(4)
        found.append(RowsChange(module.text(), attribute.text(), path.text(), rows.whole(1)))
    return tuple(found)
