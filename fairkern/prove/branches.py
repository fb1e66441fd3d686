"""Branches of residual blocks: proven once it is known what the blocks can lose inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fairkern.plans.removals import NONE, about_half
from fairkern.prove.search import Failed
from fairkern.types import IndexArray, UnitMap

_LATER = "is looked at later"


class Proof(Protocol):
    """What runs models pruned and masked."""

    seed: int

    def branches(self, candidate: UnitMap, removed: Sequence[IndexArray], doubtful: Sequence[int]) -> dict[int, Failed]:
        """What fails where these units go."""


def without_branches(units: UnitMap) -> UnitMap:
    """The map with all branches held back: one that is gone would hide what goes wrong in it."""
    return units.freeze(dict.fromkeys(units.branched, _LATER))


def with_branches(proof: Proof, units: UnitMap, traced: UnitMap) -> UnitMap:
    """The map with those branches again that hold, as they were `traced`: with whole blocks gone, or else without."""
    known = {traced.groups[g].name: traced.groups[g] for g in traced.branched}
    mine = units.branched
    groups = (known.get(group.name, group) if g in mine else group for g, group in enumerate(units.groups))
    units = replace(units, groups=tuple(groups))
    if mine.isdisjoint(units.prunable):
        return units
    found = _failed(proof, units)
    if found and any(any(held.branches) for held in units.blocks.values()):
        stay = {path: replace(held, branches=((),) * len(held.names)) for path, held in units.blocks.items()}
        without = replace(units, blocks=stay)
        again = _failed(proof, without)
        if len(again) < len(found):
            units, found = without, again
    return units.freeze({g: why.reason for g, why in found.items()})


def _failed(proof: Proof, units: UnitMap) -> dict[int, Failed]:
    """Groups of branches that fail: all about halved, so that whole blocks go; and branches of one block or another in
    turn, beside which the others stay."""
    failed: dict[int, Failed] = {}
    for removed in (about_half(units, proof.seed), _in_turn(units, proof.seed)):
        tried = units.freeze({g: why.reason for g, why in failed.items()})
        doubtful = [g for g in sorted(tried.branched) if tried.groups[g].frozen is None]
        failed |= proof.branches(tried, removed, doubtful)
    return failed


def _in_turn(units: UnitMap, seed: int) -> list[IndexArray]:
    """The same of other groups; of the k-th group of branches the units whose number has the remainder k."""
    removed = about_half(units, seed)
    mine = [g for g in sorted(units.branched) if units.groups[g].frozen is None]
    for k, g in enumerate(mine):
        group = units.groups[g]
        gone = np.arange(group.units, dtype=np.int64)[(len(mine) - 1 - k) % max(len(mine), 2) :: max(len(mine), 2)]
        removed[g] = gone[: group.units - group.least] if gone.size else NONE
    return removed
