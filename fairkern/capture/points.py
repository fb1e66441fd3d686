"""Where a pass listens: the activations that groups tap, each read once however many groups share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.types import CallSite, Side, Tap, UnitMap


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

    Within fused experts it is that of one `expert`, on the tokens that are routed to it.
    """

    name: str
    sites: tuple[CallSite, ...]
    side: Side
    dim: int
    length: int
    blocks: tuple[Block, ...]
    expert: int | None = None


def points_of(units: UnitMap, side: Side) -> list[Point]:
    """Every point at which a prunable group can be heard, in the order of the groups; experts have points of their own.

    `side`: INPUT for the consumers' inputs, OUTPUT for what the producing layers return.
    Raises InputError for a group without such a tap.
    """
    merged: dict[tuple[object, ...], list[tuple[int, Tap]]] = {}
    for g in units.prunable:
        group = units.groups[g]
        taps = group.taps if side is Side.INPUT or group.kind == "expert" else group.outputs
        if not taps:
            raise InputError(f"group {group.name} has no {side.value} tap; use recipe='default'")
        for tap in taps:
            if tap.side.of_call:
                merged.setdefault((tap.sites, tap.side, tap.dim), []).append((g, tap))
    return [_point(parts) for parts in merged.values()]


def _point(parts: Sequence[tuple[int, Tap]]) -> Point:
    first = parts[0][1]
    blocks = []
    single = [(g, tap.positions[:, 0]) for g, tap in parts if tap.positions.shape[1] == 1]
    if single:
        columns = np.unique(np.concatenate([p for _, p in single]))
        members = tuple((g, np.searchsorted(columns, p)) for g, p in single)
        blocks.append(Block(len(columns), 1, _columns(columns, first.length), members))
    blocks += [block_of(g, tap.positions, first.length) for g, tap in parts if tap.positions.shape[1] > 1]
    return Point(first.name, first.sites, first.side, first.dim, first.length, tuple(blocks))


def block_of(group: int, positions: np.ndarray, length: int, part: int = 0) -> Block:
    """The units of one group, which hold `positions` [units, per unit] of so many."""
    units, per_unit = positions.shape
    return Block(units, per_unit, _columns(positions.reshape(-1), length), ((group, np.arange(units)),), part)


def _columns(columns: np.ndarray, length: int) -> Tensor | None:
    whole = len(columns) == length and np.array_equal(columns, np.arange(length))
    return None if whole else torch.from_numpy(np.ascontiguousarray(columns))
