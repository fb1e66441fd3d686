"""Where a pass listens: the activations that groups tap, each read once however many groups share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.fused import fused_experts
from fairkern.types import AxisGroup, CallSite, Entries, Side, Tap, UnitMap


@dataclass(frozen=True, eq=False)
class Block:
    """Units of equal size at one point: columns `[units · per_unit]` of the activation, or all of them in order.

    `members` maps a group to its units' places among the block's units. Blocks of one group with another `part` hold
    further units of it (another expert's); those of the same part hear the same units elsewhere.
    """

    units: int
    per_unit: int
    columns: Tensor | None  # int64; None: the whole dimension in order
    members: tuple[tuple[int, np.ndarray], ...]
    part: int = 0

    def view(self, x: Tensor, dim: int) -> Tensor:
        """`x` with `dim` replaced by (units, per unit); no copy where the block is the whole dimension."""
        if self.columns is not None:
            x = x.index_select(dim, self.columns.to(x.device))
        return x if self.per_unit == 1 else x.unflatten(dim, (self.units, self.per_unit))


@dataclass(frozen=True, eq=False)
class Point:
    """One activation of the forward pass and the blocks of units that are alone there.

    Within fused experts it is that of one `expert`, on the tokens that are routed to it. `entry`: which of several
    things that a module returns.
    """

    name: str
    sites: tuple[CallSite, ...]
    side: Side
    dim: int
    length: int
    blocks: tuple[Block, ...]
    expert: int | None = None
    entry: int | None = None


def points_of(units: UnitMap, side: Side) -> list[Point]:
    """Every point at which a scored group can be heard, in the order of the groups; experts have points of their own.

    `side`: INPUT for the consumers' inputs, OUTPUT for what the producing layers return.
    Raises InputError for a group without such a tap.
    """
    merged: dict[tuple[object, ...], list[tuple[int, Tap]]] = {}
    for g in units.scored:
        group = units.groups[g]
        taps = group.taps if side is Side.INPUT or any(tap.side.whole for tap in group.taps) else group.outputs
        if not taps:
            raise InputError(f"group {group.name} has no {side.value} tap; use recipe='default'")
        for tap in taps:
            if tap.side.of_call:
                merged.setdefault((tap.sites, tap.side, tap.dim), []).append((g, tap))
    return [_point(parts) for parts in merged.values()]


def expert_points(model: nn.Module, units: UnitMap) -> list[Point]:
    """A point for every expert and tap within it; units of a group with several sets are those of their expert.

    An expert of a list is a site of its own: the module that gives what it adds.
    Raises InputError where the module of a tap holds no fused experts.
    """
    layouts = fused_experts(model)
    points = []
    for g in units.scored:
        group = units.groups[g]
        for tap in group.taps:
            if not tap.side.of_experts:
                continue
            path = tap.sites[0].module
            if path in units.lists:
                points += _listed(g, tap, units.lists[path])
                continue
            if path not in layouts:
                raise InputError(f"{path} holds no fused experts here, the unit map has some; trace this model again")
            down = getattr(model.get_submodule(path), layouts[path].down)
            wide = down.shape[3 - layouts[path].inner_dim]
            points += _inner(g, group, tap, len(down)) if tap.side is Side.INNER else _whole(g, tap, wide)
    return points


def branch_points(units: UnitMap) -> list[Point]:
    """A point for every branch of a residual block: what its last module returns."""
    points = []
    for g in units.scored:
        group = units.groups[g]
        for tap in group.taps:
            if tap.side is not Side.BRANCH:
                continue
            for unit, branch in enumerate(units.branches[group.axes[0].axis.tensor]):
                block = Block(1, branch.width, None, ((g, np.zeros(1, dtype=np.int64)),), part=unit)
                name, site, place = tap.of_expert(unit), tap.sites[unit], branch.last.place
                entry = place if branch.last.entries else None
                points.append(Point(name, (site,), tap.side, branch.dim, branch.width, (block,), entry=entry))
    return points


def hidden_points(units: UnitMap) -> list[Point]:
    """States of recurrent layers that their own weights read, once each; their units are scored elsewhere."""
    taps = {tap.name: tap for g in units.scored for tap in units.groups[g].taps if tap.side is Side.HIDDEN}
    return [Point(name, tap.sites, tap.side, tap.dim, tap.length, ()) for name, tap in taps.items()]


def _point(parts: Sequence[tuple[int, Tap]]) -> Point:
    first = parts[0][1]
    blocks = []
    single = [(g, tap.positions[:, 0]) for g, tap in parts if tap.positions.shape[1] == 1]
    if single:
        columns = np.unique(np.concatenate([p for _, p in single]))
        members = tuple((g, np.searchsorted(columns, p)) for g, p in single)
        blocks.append(Block(len(columns), 1, _columns(columns, first.length), members))
    blocks += [_block_of(g, tap.positions, first.length) for g, tap in parts if tap.positions.shape[1] > 1]
    return Point(first.name, first.sites, first.side, first.dim, first.length, tuple(blocks))


def _block_of(group: int, positions: np.ndarray, length: int, part: int = 0) -> Block:
    """The units of one group, which hold `positions` [units, per unit] of so many."""
    units, per_unit = positions.shape
    return Block(units, per_unit, _columns(positions.reshape(-1), length), ((group, np.arange(units)),), part)


def _columns(columns: np.ndarray, length: int) -> Tensor | None:
    whole = len(columns) == length and np.array_equal(columns, np.arange(length))
    return None if whole else torch.from_numpy(np.ascontiguousarray(columns))


def _inner(g: int, group: AxisGroup, tap: Tap, experts: int) -> list[Point]:
    return [
        Point(
            tap.of_expert(e), tap.sites, tap.side, 1, tap.length,
            (_block_of(g, tap.positions, tap.length, part=e if group.sets > 1 else 0),), e,
        )
        for e in range(experts)
    ]  # fmt: skip


def _whole(g: int, tap: Tap, wide: int) -> list[Point]:
    alone = ((g, np.zeros(1, dtype=np.int64)),)
    return [
        Point(tap.of_expert(e), tap.sites, tap.side, 1, wide, (Block(1, wide, None, alone, part=unit),), int(e))
        for unit, e in enumerate(tap.positions[:, 0])
    ]


def _listed(g: int, tap: Tap, entries: Entries) -> list[Point]:
    return [
        replace(p, sites=(CallSite(f"{tap.sites[0].module}.{entries.names[p.expert or 0]}"),), dim=-1, expert=None)
        for p in _whole(g, tap, entries.width)
    ]
