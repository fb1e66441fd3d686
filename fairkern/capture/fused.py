"""Where experts and their units are heard: an expert sees the tokens routed to it, and is silent for all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from fairkern.capture.listener import Listener
from fairkern.capture.points import Block, Point, block_of
from fairkern.errors import InputError
from fairkern.model.fused import Forward, by_expert, fused_experts
from fairkern.types import AxisGroup, CallSite, Entries, Side, Tap, UnitMap

Hears = Callable[[Point, Tensor, Tensor, Tensor], Tensor]


def expert_points(model: nn.Module, units: UnitMap) -> list[Point]:
    """A point for every expert and tap within it; units of a group with several sets are those of their expert.

    An expert of a list is a site of its own: the module that gives what it adds.
    Raises InputError where the module of a tap holds no fused experts.
    """
    layouts = fused_experts(model)
    points = []
    for g in units.prunable:
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


def _inner(g: int, group: AxisGroup, tap: Tap, experts: int) -> list[Point]:
    return [
        Point(
            tap.of_expert(e), tap.sites, tap.side, 1, tap.length,
            (block_of(g, tap.positions, tap.length, part=e if group.sets > 1 else 0),), e,
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


def listening(points: Iterable[Point], listener: Listener) -> Mapping[str, Forward]:
    """By path, how a module of fused experts runs while its experts are heard one after the other."""
    by_site = defaultdict(list)
    for p in points:
        if p.expert is not None:
            for site in p.sites:
                by_site[site, p.side, p.expert].append(p)

    def run(path: str) -> Forward:
        def forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            site, carrier = listener.next_site(path, Side.EXPERT), hidden.detach()

            def hear(side: Side) -> Callable[[int, Tensor, Tensor], Tensor]:
                def heard(expert: int, x: Tensor, tokens: Tensor) -> Tensor:
                    for p in by_site.get((site, side, expert), ()):
                        x = listener.hear_rows(p, x, tokens, carrier)
                    return x

                return heard

            return by_expert(module, hidden, index, weights, inner=hear(Side.INNER), output=hear(Side.EXPERT))

        return forward

    return {path: run(path) for path in {site.module for site, _, _ in by_site}}
