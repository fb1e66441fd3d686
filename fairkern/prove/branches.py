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
    """The map with those branches again that hold, as they were `traced`: with whole blocks gone, or else with those of
    a list left in their places, emptied."""
    known = {traced.groups[g].name: traced.groups[g] for g in traced.branched}
    mine = units.branched
    groups = (known.get(group.name, group) if g in mine else group for g, group in enumerate(units.groups))
    units = replace(units, groups=tuple(groups))
    if mine.isdisjoint(units.prunable):
        return units
    found = _failed(proof, units)
    for path, held in units.blocks.items():
        if found and any(held.branches):
            stays = replace(held, branches=((),) * len(held.names))
            without = replace(units, blocks={**units.blocks, path: stays})
            again = _failed(proof, without)
            if len(again) < len(found):
                units, found = without, again
    return units.freeze({g: why.reason for g, why in found.items()})


def _failed(proof: Proof, units: UnitMap) -> dict[int, Failed]:
    """Groups of branches that fail: all about halved, so that whole blocks go, among them the first; the last blocks
    as a whole, which no result may read, while places are counted from the end; and branches of one block or another in
    turn, beside which the others stay."""
    failed: dict[int, Failed] = {}
    for removed in (about_half(units, proof.seed), _the_last(units), _in_turn(units, proof.seed)):
        if not any(removed[g].size for g in units.branched):
            continue
        tried = units.freeze({g: why.reason for g, why in failed.items()})
        doubtful = [g for g in sorted(tried.branched) if tried.groups[g].frozen is None]
        failed |= proof.branches(tried, removed, doubtful)
    return failed


def _the_last(units: UnitMap) -> list[IndexArray]:
    """All branches of the last block of every list, as far as they may go, and nothing else."""
    number = {units.groups[g].axes[0].axis.tensor: g for g in units.branched if units.groups[g].frozen is None}
    removed = [NONE] * len(units.groups)
    for held in units.blocks.values():
        own = held.branches[-1] if held.branches else ()
        if own and all(name in number for name, _ in own):
            for name, unit in own:
                g = number[name]
                removed[g] = np.union1d(removed[g], [unit]).astype(np.int64)
    return [
        gone if units.groups[g].units - gone.size >= units.groups[g].least else NONE for g, gone in enumerate(removed)
    ]


def _in_turn(units: UnitMap, seed: int) -> list[IndexArray]:
    """The same of other groups; of the k-th group of branches the units whose number has the remainder k."""
    removed = about_half(units, seed)
    mine = [g for g in sorted(units.branched) if units.groups[g].frozen is None]
    for k, g in enumerate(mine):
        group = units.groups[g]
        gone = np.arange(group.units, dtype=np.int64)[(len(mine) - 1 - k) % max(len(mine), 2) :: max(len(mine), 2)]
        removed[g] = gone[: group.units - group.least] if gone.size else NONE
    return removed
