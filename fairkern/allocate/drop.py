"""So many units of every group of a kind: `drop={"expert": 2}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairkern.allocate.bundles import Bundle, Levels
from fairkern.allocate.options import check_kinds
from fairkern.errors import BudgetError, InputError
from fairkern.plans.serving import listed, plural
from fairkern.types import IndexArray, UnitMap


def dropped(
    units: UnitMap,
    bundles: Sequence[Bundle],
    levels: Levels,
    drop: Mapping[str, int],
    ignored: frozenset[int],
    stays: Mapping[int, str],
) -> IndexArray:
    """Steps of every bundle, int64 `[bundles]`, that take exactly `drop[kind]` units of every group of that kind.

    Of experts that lie in groups so many go in all, as many from each. Groups that are ignored or frozen are not meant.
    What is tied to a group loses the same share with it.

    Raises:
        InputError: a kind that the map does not have, or of which no group can be cut.
        BudgetError: a group that cannot lose so many: names it and what it can lose.
    """
    check_kinds(units, "drop", drop)
    steps = np.zeros(len(bundles), dtype=np.int64)
    for kind, count in drop.items():
        groups = [g for g in units.prunable if units.groups[g].kind == kind and g not in ignored]
        if not groups:
            raise InputError(
                f"drop={dict(drop)!r}: no group of kind {kind!r} can be cut; print(units.explain()) names the reasons"
            )
        for g in groups:
            group, blocks = units.groups[g], units.groups[g].blocks
            told = f"drop={dict(drop)!r} cannot be met: {count} of the {group.units * blocks} {plural(kind)} of "
            told += group.name
            b = int(levels.bundle[g])
            if b < 0 or not len(bundles[b].parts):
                raise BudgetError(f"{told} cannot go: {stays.get(g, 'no number of them that the limits allow')}")
            allowed = bundles[b].parts * levels.size[g] * blocks
            if count not in allowed:
                raise BudgetError(f"{told} cannot go: with these limits it can be {listed(allowed.tolist())}")
            wanted = 1 + int(np.searchsorted(allowed, count))
            if steps[b] not in (0, wanted):
                raise BudgetError(f"{told} would go, and others of those that move together")
            steps[b] = wanted
    return steps
