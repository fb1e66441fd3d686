"""Which groups of a traced map hold, and by which means: what is tried, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fairkern.axes import Solution
from fairkern.deadline import Deadline
from fairkern.prove.trial import prove
from fairkern.types import SiteNumber, SizeSite, UnitMap


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
        numbers: dict[SiteNumber, bool] | None = {} if learn else None
        for inputs in self.runs:
            failed |= prove(
                self.model,
                candidate.freeze(failed),
                inputs,
                seed=self.seed,
                numbers=numbers,
                together=together,
                deadline=self.deadline,
            )
        gone = [number for number, right in (numbers or {}).items() if right]
        return candidate.without_sites(gone), failed

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
