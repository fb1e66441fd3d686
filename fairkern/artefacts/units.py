"""A unit map as plain JSON content and a pool of index arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fairkern.artefacts.branches import blocks_content, branches_content, read_blocks, read_branches
from fairkern.artefacts.fields import LIMIT, Fields
from fairkern.types import (
    Axis,
    AxisGroup,
    CallSite,
    ConfigChange,
    ConfigField,
    CostTerm,
    Entries,
    Extent,
    FrozenAxis,
    GroupAxis,
    IndexArray,
    KeptUnits,
    Replacement,
    Side,
    Silence,
    SizeAttribute,
    SizeSite,
    Tap,
    UnitMap,
)


class IndexPool:
    """Collects index arrays `[units, per unit]`; equal ones are kept once."""

    def __init__(self) -> None:
        self._number: dict[tuple[tuple[int, ...], bytes], int] = {}
        self._arrays: list[IndexArray] = []

    def add(self, array: IndexArray) -> int:
        array = np.ascontiguousarray(array, dtype=np.int64)
        number = self._number.setdefault((array.shape, array.tobytes()), len(self._arrays))
        if number == len(self._arrays):
            self._arrays.append(array)
        return number

    @property
    def shapes(self) -> list[list[int]]:
        return [list(array.shape) for array in self._arrays]

    def joined(self) -> IndexArray:
        return np.concatenate([np.zeros(0, dtype=np.int64), *(array.ravel() for array in self._arrays)])


class StoredIndices:
    """The arrays of a pool that was read back, each checked once."""

    def __init__(self, shapes: Fields, joined: IndexArray) -> None:
        self._arrays: list[IndexArray] = []
        start = 0
        for item in shapes.items():
            rows, columns = (size.whole() for size in item.items(2))
            array = joined[start : start + rows * columns]
            if len(array) != rows * columns:
                item.fail(f"the tensor 'index' ends after {len(joined)} positions")
            if rows and not columns:
                item.fail(f"{rows} units that hold no position")
            start += rows * columns
            array = array.reshape(rows, columns)
            if array.size and (array.min() < 0 or (np.diff(array, axis=1) <= 0).any()):
                item.fail("the positions of a unit are negative or do not ascend")
            if len(np.unique(array)) != array.size:
                item.fail("one position is held by two units")
            self._arrays.append(array)
        if start != len(joined):
            shapes.fail(f"the tensor 'index' has {len(joined)} positions, expected {start}")

    def positions(self, entry: Fields, units: tuple[int, int], length: int) -> IndexArray:
        """The array that `entry` numbers, if it suits a group of so many units (of a set, of all) on an axis of that
        length."""
        array = self._arrays[entry.whole(below=len(self._arrays))]
        if array.shape[0] not in units:
            entry.fail(f"positions of {array.shape[0]} units in a group of {units[0]}")
        if array.size and array.max() >= length:
            entry.fail(f"the position {array.max()} lies beyond the length {length}")
        return array


def units_content(units: UnitMap, pool: IndexPool) -> dict[str, Any]:
    """The map as plain JSON content; index arrays go into the pool and leave their number."""
    sited = {s.module for s in units.sites}
    seen = {module: places for module, places in units.seen.items() if module in sited}
    return {
        "model": units.model,
        "proven": units.proven,
        "notes": list(units.notes),
        "shapes": {name: list(shape) for name, shape in units.shapes.items()},
        "extents": [[e.length, [list(part) for part in e.parts], e.unit] for e in units.extents],
        "params": [[t.coefficient, list(t.extents)] for t in units.params],
        "flops": [[t.coefficient, list(t.extents)] for t in units.flops],
        "attributes": [[a.module, a.attribute, a.extent, a.observed] for a in units.attributes],
        "sites": [
            [
                s.module,
                s.call,
                s.function,
                s.place,
                s.extent,
                *([s.at] if s.at else []),
                *([True] if s.outright else []),
            ]
            for s in units.sites
        ],
        **({"seen": seen_content(seen)} if seen else {}),
        "replacements": [[r.module, r.name] for r in units.replacements],
        "lists": {path: [e.width, list(e.names)] for path, e in units.lists.items()},
        **({"kept": [[k.kind, k.module, k.reason] for k in units.kept]} if units.kept else {}),
        **({"computed": list(units.computed)} if units.computed else {}),
        **({"unused": list(units.unused)} if units.unused else {}),
        **({"more": units.more} if units.more else {}),
        **({"depth": True} if units.depth else {}),
        **({"sibling": [[c.name, c.before, c.after] for c in units.sibling]} if units.sibling else {}),
        **({"classes": dict(units.classes)} if units.classes else {}),
        **({"branches": branches_content(units.branches)} if units.branches else {}),
        **({"blocks": blocks_content(units.blocks)} if units.blocks else {}),
        "config": [
            [
                *(f.name, f.before, f.size, list(f.groups), f.fixed),
                *([] if f.admitted is None else [list(f.admitted)]),
            ]
            for f in units.config
        ],
        "frozen": [[f.axis.tensor, f.axis.dim, f.positions, f.length, f.reason] for f in units.frozen],
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.units,
                "frozen": group.frozen,
                "sets": group.sets,
                "least": group.least,
                "multiple": group.multiple,
                "axes": [[a.axis.tensor, a.axis.dim, a.length, pool.add(a.positions), a.consumer] for a in group.axes],
                "routes": [i for i, a in enumerate(group.axes) if a.silence is Silence.MINUS_INFINITY],
                "taps": [_tap_content(tap, pool) for tap in group.taps],
                "outputs": [_tap_content(tap, pool) for tap in group.outputs],
            }
            for group in units.groups
        ],
    }


def _tap_content(tap: Tap, pool: IndexPool) -> dict[str, Any]:
    return {
        "sites": [[site.module, site.call, site.weight, site.argument] for site in tap.sites],
        "side": tap.side.value,
        "dim": tap.dim,
        "length": tap.length,
        "positions": pool.add(tap.positions),
        "weights": [[axis.tensor, axis.dim] for axis in tap.weights],
    }


def read_units(content: Fields, stored: StoredIndices) -> UnitMap:
    """The map of `units_content`; ArtefactError where numbers point nowhere or lengths contradict each other."""
    shapes = content["shapes"].shapes()
    lists = {path: _entries(entry) for path, entry in content.get("lists", {}).entries().items()}
    branches = read_branches(content, len(content["extents"].items()))
    counted = {
        **{path: len(entries.names) for path, entries in lists.items()},
        **{n: len(b) for n, b in branches.items()},
    }
    lengths = {**shapes, **{path: (count,) for path, count in counted.items()}}
    groups = tuple(_group(entry, stored, lengths, branches) for entry in content["groups"].items())
    extents = tuple(_extent(entry, groups) for entry in content["extents"].items())
    attributes = []
    for entry in content["attributes"].items():
        module, attribute, extent, observed = entry.items(4)
        where = extent.whole(below=len(extents))
        attributes.append(SizeAttribute(module.text(), attribute.text(), where, observed.flag()))
    sites = []
    for entry in content.optional_items("sites"):
        items = entry.items()
        module, call, function, place, extent, *at = (
            items if len(items) in (6, 7) else entry.items(5)
        )  # six by place of code, seven where given outright
        where = extent.whole(below=len(extents))
        at_text = at[0].text() if at else ""
        number = call.optional_whole() if at_text else call.whole()
        outright = len(at) == 2 and at[1].flag()
        sites.append(
            SizeSite(module.text(), number, function.text(), place.whole(), where, at=at_text, outright=outright)
        )
    replacements = []
    for entry in content.optional_items("replacements"):
        module, name = entry.items(2)
        replacements.append(Replacement(module.text(), name.text()))
    kept = []
    for entry in content.optional_items("kept"):
        kind, module, reason = entry.items(3)
        kept.append(KeptUnits(kind.text(), module.text(), reason.text()))
    config = []
    for entry in content.optional_items("config"):
        items = entry.items()
        name, before, size, members, fixed, *admitted = items if len(items) == 6 else entry.items(5)
        indices = tuple(g.whole(below=len(groups)) for g in members.items())
        values = admitted[0].wholes() if admitted else None
        config.append(ConfigField(name.text(), before.optional_whole(), size.whole(1), indices, fixed.flag(), values))
    frozen = []
    for entry in content["frozen"].items():
        tensor, dim, positions, length, reason = entry.items(5)
        axis = Axis(tensor.text(), dim.whole())
        entry.axis_length(lengths, axis.tensor, axis.dim, length.whole())
        frozen.append(FrozenAxis(axis, positions.whole(), length.whole(), reason.text()))
    return UnitMap(
        model=content["model"].text(),
        groups=groups,
        frozen=tuple(frozen),
        extents=extents,
        params=tuple(_term(entry, len(extents)) for entry in content["params"].items()),
        flops=tuple(_term(entry, len(extents)) for entry in content["flops"].items()),
        attributes=tuple(attributes),
        shapes=shapes,
        proven=content["proven"].flag(),
        notes=tuple(note.text() for note in content["notes"].items()),
        sites=tuple(sites),
        replacements=tuple(replacements),
        config=tuple(config),
        lists=lists,
        seen=read_seen(content),
        kept=tuple(kept),
        computed=tuple(name.text() for name in content.optional_items("computed")),
        unused=tuple(name.text() for name in content.optional_items("unused")),
        more=content.get("more", 0).whole(),
        branches=branches,
        blocks=read_blocks(content, groups),
        depth=content.get("depth", False).flag(),
        sibling=tuple(_smaller(entry) for entry in content.optional_items("sibling")),
        classes={name: entry.text() for name, entry in content.get("classes", {}).entries().items()},
    )


def seen_content(seen: Mapping[str, tuple[str, ...]]) -> list[list[list[str]]]:
    """[modules, places in their code], those with the same places together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for module, places in seen.items():
        together.setdefault(places, []).append(module)
    return [[modules, list(places)] for places, modules in together.items()]


def read_seen(content: Fields) -> dict[str, tuple[str, ...]]:
    """What `seen_content` wrote; files of an older schema have nothing of it."""
    pairs = [entry.items(2) for entry in content.optional_items("seen")]
    return {module: places.names() for modules, places in pairs for module in modules.names()}


def _smaller(entry: Fields) -> ConfigChange:
    name, before, after = entry.items(3)
    return ConfigChange(name.text(), before.optional_whole(), after.whole(1))


def _entries(entry: Fields) -> Entries:
    width, names = entry.items(2)
    return Entries(names.names(), width.whole())


def _group(
    entry: Fields, stored: StoredIndices, shapes: dict[str, tuple[int, ...]], branches: Collection[str]
) -> AxisGroup:
    units, sets = entry["units"].whole(1), entry.get("sets", 1).whole(1)
    routes = {item.whole(below=len(entry["axes"].items())) for item in entry.get("routes", []).items()}
    axes = []
    for i, item in enumerate(entry["axes"].items()):
        tensor, dim, length, positions, consumer = item.items(5)
        axis = Axis(tensor.text(), dim.whole())
        item.axis_length(shapes, axis.tensor, axis.dim, length.whole())
        places = stored.positions(positions, (units, units * sets), length.value)
        axes.append(GroupAxis(axis, length.value, places, silence(consumer, i in routes, axis.tensor in branches)))
    if not axes:
        entry.fail(f"{units} units that hold no axis")
    if sets > 1 and any(
        len(a.positions) == units and (a.axis.dim == 0 or shapes[a.axis.tensor][0] != sets) for a in axes
    ):
        entry.fail(f"{sets} sets of units on a tensor whose first dimension has another length")
    return AxisGroup(
        entry["name"].text(),
        entry["kind"].text(),
        units,
        tuple(axes),
        tuple(_tap(item, stored, (units, units * sets)) for item in entry["taps"].items()),
        tuple(_tap(item, stored, (units, units * sets)) for item in entry["outputs"].items()),
        entry["frozen"].optional_text(),
        sets,
        entry.get("least", 1).whole(1),
        entry.get("multiple", 1).whole(1),
    )


def silence(consumer: Fields, routes: bool, adds: bool) -> Silence:
    """How an axis is silenced, of the two marks that files have for it; `adds`: it counts branches."""
    if routes + consumer.flag() + adds > 1:
        consumer.fail("an axis that is more than one of a consumer's, a router's and of branches")
    if adds:
        return Silence.NOTHING_ADDED
    return Silence.MINUS_INFINITY if routes else Silence.ZERO if consumer.flag() else Silence.NONE


def _tap(entry: Fields, stored: StoredIndices, units: tuple[int, int]) -> Tap:
    sites = []
    for item in entry["sites"].items():
        module, call, weight, argument = item.items(4)
        sites.append(CallSite(module.text(), call.whole(), weight.text(), argument.whole()))
    if not sites:
        entry.fail("a tap without a site")
    weights = []
    for item in entry["weights"].items():
        tensor, dim = item.items(2)
        weights.append(Axis(tensor.text(), dim.whole()))
    side = _side(entry["side"])
    length = entry["length"].whole()
    positions = stored.positions(entry["positions"], units, length)
    return Tap(tuple(sites), side, entry["dim"].whole(-LIMIT), length, positions, tuple(weights))


def _side(entry: Fields) -> Side:
    try:
        return Side(entry.text())
    except ValueError:
        entry.fail(f"the side {entry.text()!r}, expected one of {', '.join(repr(side.value) for side in Side)}")


def _extent(entry: Fields, groups: Sequence[AxisGroup]) -> Extent:
    items = entry.items()
    length, parts, *one = items if len(items) == 3 else entry.items(2)  # two below schema 3
    pairs = []
    for part in parts.items():
        group, per_unit = part.items(2)
        pairs.append((group.whole(below=len(groups)), per_unit.whole()))
    unit = one[0].optional_whole() if one else None
    if unit is not None and (len(pairs) != 1 or unit >= groups[pairs[0][0]].total):
        entry.fail(f"a size that follows unit {unit} of {len(pairs)} groups")
    return Extent(length.whole(), tuple(pairs), unit)


def _term(entry: Fields, extents: int) -> CostTerm:
    coefficient, indices = entry.items(2)
    return CostTerm(coefficient.number(), tuple(item.whole(below=extents) for item in indices.items()))
