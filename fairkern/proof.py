"""Prove, then allow: which groups of a traced map hold, by which means, and whether the configuration follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from fairkern import allocate, axes, compact
from fairkern.axes import Solution
from fairkern.deadline import Deadline
from fairkern.types import AxisGroup, IndexArray, SizeSite, UnitMap


@dataclass(frozen=True)
class _Proof:
    """Runs a model pruned and masked, on several inputs."""

    model: nn.Module
    runs: Sequence[Any]
    seed: int
    deadline: Deadline

    def failing(self, candidate: UnitMap, learn: bool, together: bool) -> tuple[UnitMap, dict[int, str]]:
        """What fails, and the map without the sites whose numbers turn out right by themselves."""
        failed: dict[int, str] = {}
        needless: set[tuple[str, int, int]] | None = set() if learn else None
        for inputs in self.runs:
            failed |= compact.prove(
                self.model,
                candidate.freeze(failed),
                inputs,
                make_plan=allocate.build,
                seed=self.seed,
                needless_sites=needless,
                together=together,
                deadline=self.deadline,
            )
            if needless is not None:
                candidate, needless = candidate.without_sites(needless), None
        return candidate, failed

    def whole(self, units: UnitMap, sites: Sequence[SizeSite]) -> UnitMap | None:
        """The map if all of its groups hold together, as it is or with sizes substituted."""
        for candidate, learn in _with_and_without(units, sites, units.prunable):
            candidate, failed = self.failing(candidate, learn, together=True)
            if not failed:
                return candidate
        return None


def _with_and_without(
    candidate: UnitMap, sites: Sequence[SizeSite], groups: Iterable[int]
) -> list[tuple[UnitMap, bool]]:
    sited = candidate.with_sites(sites, groups)
    return [(candidate, False), (sited, True)] if sited.sites else [(candidate, False)]


def proven(
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
) -> UnitMap:
    """The map with every group frozen that fails on any of the inputs.

    `daring`, which cuts more than the trace vouches for, is taken if all of its groups pass together, or all but
    those that fail in the certain map too; else not at all. Of the certain map, tried until all groups pass
    together: the map as it is; with sizes substituted that modules' code passes on; and for the groups that fail
    then, the same two without attributes that were recognised by their value, which may be a coincidence. If none
    of these passes whole, the one with which the fewest groups fail.
    """
    proof = _Proof(model, runs, seed, deadline)
    units, sites = certain.units, certain.sites
    tried = [(units, sites)]
    if daring is not None:
        unobserved = daring.units.without_observed(daring.units.prunable)
        dared = [daring.units, unobserved] if unobserved.attributes != daring.units.attributes else [daring.units]
        tried = [*((candidate, daring.sites) for candidate in dared), *tried]
    for candidate, known in tried:
        found = proof.whole(candidate, known)
        if found is not None:
            return found
    _, failed = proof.failing(units, learn=False, together=False)
    best = units.freeze(failed)
    others = _with_and_without(units.without_observed(failed), sites, failed)
    if len(others[0][0].attributes) == len(units.attributes):
        del others[0]
    for together in (True, False):
        for candidate, learn in others:
            candidate, again = proof.failing(candidate, learn, together)
            if not again:
                return candidate
            if not together and len(again) < len(failed):
                best, failed = candidate.freeze(again), again
    reasons = {units.groups[g].name: reason for g, reason in failed.items()}
    for candidate, known in tried[:-1]:
        same = {g: reasons[group.name] for g, group in enumerate(candidate.groups) if group.name in reasons}
        found = proof.whole(candidate.freeze(same), known) if same else None
        if found is not None:
            return found
    return best


def _half(group: AxisGroup) -> IndexArray:
    """The first half of a group's units, or as many as it can spare; the same of each of its sets."""
    stays = max(group.units - group.units // 2, group.least)
    gone = np.arange(group.units - min(group.units, -(-stays // group.multiple) * group.multiple))
    return gone if group.sets == 1 or not len(gone) else np.tile(gone, (group.sets, 1))


def described(model: nn.Module, units: UnitMap, inputs: Any, seed: int) -> UnitMap:
    """The map with the fields of the model's configuration that follow a cut.

    Shown by cutting every group of theirs by one share: a model built from the configuration has the shapes that
    are left, and the cut model still computes what the masked one does. Heads are left out if it fails with them.
    """
    fields = axes.config_fields(model, units.groups)
    inner = [f for f in fields if all(units.groups[g].kind != "head" for g in f.groups)]
    notes: list[str] = []
    for tried in (fields, inner) if len(inner) < len(fields) else (fields,):
        cut = {g for f in tried for g in f.groups if units.groups[g].units > 1}
        if not cut:
            continue
        removed = [_half(group) if g in cut else np.arange(0) for g, group in enumerate(units.groups)]
        candidate = replace(units, config=tuple(tried))
        plan = allocate.build(candidate, removed)
        reason = compact.undescribed(model, plan, compact.shapes_after(plan)) or compact.failure(
            model, candidate, removed, inputs, make_plan=allocate.build, seed=seed
        )
        if reason is None:
            return replace(candidate, notes=(*units.notes, *notes))
        names = ", ".join(f.name for f in tried)
        notes.append(f"the configuration ({names}) does not describe a pruned model: {reason}")
    return replace(units, notes=(*units.notes, *notes))
