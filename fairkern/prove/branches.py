"""Branches of residual blocks: proven once it is known what the blocks can lose inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from torch import nn

from fairkern.compact.cutting import apply
from fairkern.model.fields import configurations
from fairkern.model.raised import in_words
from fairkern.model.tensors import named_tensors
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, about_half
from fairkern.prove.probes import built_shapes
from fairkern.prove.search import Failed
from fairkern.types import Blocks, ConfigField, IndexArray, UnitMap

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


def counting_blocks(model: nn.Module, units: UnitMap) -> UnitMap:
    """The map with the fields of the configuration that count whole blocks: a model that is built from what they say
    once the first block is gone has the shapes that are left. Each group of branches has one in every block."""
    fields = []
    for path, held in units.blocks.items():
        groups = [
            g for g in units.branched if any(units.groups[g].name == name for own in held.branches for name, _ in own)
        ]
        every = all({(units.groups[g].name, k) for g in groups} == set(own) for k, own in enumerate(held.branches))
        name = _field(model, held)
        if not groups or not every or name is None or any(units.groups[g].frozen is not None for g in groups):
            continue
        removed = [np.zeros(int(g in groups), dtype=np.int64) for g in range(len(units.groups))]
        small = apply(model, build(units, removed))
        try:
            found = built_shapes(small, ())
        except Exception as error:  # somebody else's code, which may take no such configuration
            units = replace(
                units, notes=(*units.notes, f"{name} does not count the blocks: {in_words(error, model, 120)}")
            )
            continue
        if found == {name: tuple(tensor.shape) for name, tensor in named_tensors(small).items()}:
            size = len(held.names)
            fields.append(ConfigField(name, size, size, tuple(sorted(groups)), blocks=path))
    return replace(units, config=(*units.config, *fields))


def _field(model: nn.Module, held: Blocks) -> str | None:
    """The field that counts the blocks, as the model's own configuration calls it."""
    for holder, attribute in held.counts:
        own = vars(model.get_submodule(holder)).get("config")
        for prefix, config, _ in configurations(model):
            if config is own:
                return prefix + attribute.removeprefix("config.")
    return None


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
