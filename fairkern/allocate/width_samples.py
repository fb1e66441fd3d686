"""Cuts at which a model is timed: random units, every group at the same width and at widths of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fairkern.allocate.options import Planning, limits
from fairkern.errors import InputError
from fairkern.plans.removals import drawn
from fairkern.types import IndexArray, UnitMap

_SPREAD = 0.08  # of a share: plans have odd widths, on which kernels are slower than on round ones


def widths(
    units: UnitMap, shares: Sequence[float], round_to: int | Mapping[str, int], seed: int
) -> Iterator[list[IndexArray]]:
    """Removals, as `build` takes them: a share of every group stays, then another share of each.

    Args:
        units: the map.
        shares: of a group's units that stay, above 0, below 1; each is taken by all groups together, give or take a
            few per cent of it, so that widths are as odd as those of plans. Then as many cuts
            and one more, in which every group takes these shares and 1 in turn, in an order of its own.
        round_to: what stays of a group that is cut is a multiple of it.
        seed: of an own NumPy generator, for orders and units.

    Raises InputError: shares out of range, `round_to` below 1.
    """
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"shares={list(shares)!r} are not shares of a group that stay; expected numbers from 0 to 1")
    limit = limits(units, frozenset(), Planning(max_remove=1 - 1e-9, round_to=round_to))
    generator = np.random.default_rng(seed)
    mixed = [*shares, 1.0]
    orders = np.array([generator.permutation(len(mixed)) for _ in units.groups])

    def cut(stays: Sequence[float]) -> list[IndexArray]:
        found = []
        for g, group in enumerate(units.groups):
            stay = stays[g] if stays[g] == 1 else stays[g] * generator.uniform(1 - _SPREAD, 1 + _SPREAD)
            wanted = round((1 - min(stay, 1.0)) * group.units)
            steps = 0 if wanted < limit.first[g] else 1 + (min(wanted, limit.most[g]) - limit.first[g]) // limit.step[g]
            count = int(limit.first[g] + (steps - 1) * limit.step[g]) if steps > 0 else 0
            found.append(drawn(group, count, generator))
        return found

    for share in shares:
        yield cut([share] * len(units.groups))
    for k in range(len(mixed) if shares else 0):
        yield cut([mixed[order[k]] for order in orders])
