"""Which groups of a traced map hold, and by which means: what is tried, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fairkern.axes import Solution
from fairkern.deadline import Deadline
from fairkern.model.size_calls import BY_NAME
from fairkern.plans.removals import NONE
from fairkern.prove.branches import with_branches, without_branches
from fairkern.prove.description import described
from fairkern.prove.prepared import Prepared, prepare
from fairkern.prove.search import Failed
from fairkern.prove.states import states_of
from fairkern.prove.trial import failing
from fairkern.types import Axis, AxisGroup, IndexArray, Passed, SiteNumber, SizeAttribute, SizeSite, UnitMap


class _Proof:
    """Runs a model pruned and masked, on several inputs. It keeps of one proof what the next can use."""

    def __init__(self, model: nn.Module, runs: Sequence[Any], seed: int, deadline: Deadline) -> None:
        self._model, self._runs, self.seed, self._deadline = model, runs, seed, deadline
        self._prepared: tuple[int, Prepared] | None = None  # the copy for one of the runs: a model is large
        self._said: dict[tuple[int, int], tuple[UnitMap, Failed]] = {}  # how all groups of a map failed together

    def failing(
        self,
        candidate: UnitMap,
        learn: bool,
        together: bool,
        doubtful: Iterable[int] | None = None,
        most: int | None = None,
    ) -> tuple[UnitMap, dict[int, Failed]]:
        """What fails, and the map with what was learned of its sites.

        `doubtful`: the groups that may fail; those beside them have passed together. `most`: as many failing groups are
        too many to look for others.
        """
        failed: dict[int, Failed] = {}
        numbers: dict[SiteNumber, Passed] | None = {} if learn else None
        for number, inputs in enumerate(self._runs):
            tried = candidate.freeze(_reasons(failed)) if failed else candidate
            known = (id(tried), number)
            found = failing(
                self._model,
                tried,
                inputs,
                seed=self.seed,
                numbers=numbers,
                together=together,
                prepared=self.prepared(tried, number),
                doubtful=doubtful,
                most=None if most is None else most - len(failed),
                said=self._said[known][1] if known in self._said else None,
                deadline=self._deadline,
            )
            if together and found:
                self._said[known] = tried, next(iter(found.values()))
            failed |= found
            if most is not None and len(failed) >= most:
                break
        return candidate if numbers is None else candidate.with_learned(numbers), failed

    def prepared(self, units: UnitMap, number: int) -> Prepared:
        """The copy that the proofs on this run use."""
        if self._prepared is None or self._prepared[0] != number:
            self._prepared = None
            self._prepared = number, prepare(self._model, units, self._runs[number], self.seed)
        return self._prepared[1]

    def branches(self, candidate: UnitMap, removed: Sequence[IndexArray], doubtful: Sequence[int]) -> dict[int, Failed]:
        """What fails of branches where these units go; what lies beside them has passed."""
        failed: dict[int, Failed] = {}
        for number, inputs in enumerate(self._runs):
            tried = candidate.freeze(_reasons(failed)) if failed else candidate
            left = [gone if tried.groups[g].frozen is None else NONE for g, gone in enumerate(removed)]
            failed |= failing(
                self._model,
                tried,
                inputs,
                seed=self.seed,
                prepared=self.prepared(tried, number),
                doubtful=[g for g in doubtful if g not in failed],
                removed=left,
                deadline=self._deadline,
            )
        return failed

    def whole(self, units: UnitMap, sites: Sequence[SizeSite]) -> UnitMap | None:
        """The map if all of its groups hold together, as it is or with sizes substituted."""
        for candidate, learn in _with_and_without(units, sites, units.prunable):
            candidate, failed = self.failing(candidate, learn, together=True)
            if not failed:
                return candidate
        return None


def _reasons(failed: Mapping[int, Failed]) -> dict[int, str]:
    return {group: why.reason for group, why in failed.items()}


def _with_and_without(
    candidate: UnitMap, sites: Sequence[SizeSite], groups: Iterable[int]
) -> list[tuple[UnitMap, bool]]:
    """The map as it is; with its size sites, but for those that were recognised by their value alone (which may be that
    of a batch); with these; and the same two with those at which the code asks for sizes that it then divides."""
    groups = tuple(groups)
    passed = [s for s in sites if BY_NAME[s.function].kind != "asked"]
    sited: list[UnitMap] = []
    for chosen in ([s for s in passed if not s.guessed], passed, [s for s in sites if not s.guessed], sites):
        tried = candidate.with_sites(chosen, groups)
        if tried.sites and all(tried.sites != other.sites for other in sited):
            sited.append(tried)
    return [(candidate, False), *((tried, True) for tried in sited)]


def _fewer_observed(units: UnitMap, failed: Iterable[int]) -> list[UnitMap]:
    """The map without attributes that were recognised by their value and follow a group that failed: those of one value
    at a time (two may be the number of heads, another happen to be as large as something else), then all."""
    failed = set(failed)
    none = units.without_observed(failed)
    observed = [a for a in units.attributes if a not in none.attributes]
    if not observed:
        return [units]
    values = sorted({units.extents[a.extent].length for a in observed})
    one = [units.without_observed(failed, value) for value in values] if len(values) > 1 else []
    return [*one, none]


def _compared(units: UnitMap, attributes: Sequence[SizeAttribute], failed: Mapping[int, Failed]) -> list[UnitMap]:
    """The map with attributes that follow groups without which the pruned model raises: code may compare inputs with
    them. None where nothing raised."""
    raised = {group for group, why in failed.items() if why.raised}
    more = [a for a in attributes if units.follows(a.extent) & raised]
    return [replace(units, attributes=(*units.attributes, *more))] if more else []


def proven(
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
) -> UnitMap:
    """The map with every group frozen that fails on any of the inputs, and with what of the model's configuration
    follows a cut."""
    found = _on_smaller(model, certain, daring, runs, seed, deadline)
    if found is not None:
        return found
    proof = _Proof(model, runs, seed, deadline)
    widths, dared = (
        None if found is None else replace(found, units=without_branches(found.units)) for found in (certain, daring)
    )
    assert widths is not None
    units = replace(_proven(proof, widths, dared), proven=True)
    deadline.check("proving groups")
    alone = {s.number for found in (certain, daring) if found is not None for s in found.sites if s.outright}
    units = described(model, units, runs[0], seed, lambda: proof.prepared(units, 0), alone)
    return with_branches(proof, units, certain.units)


def _on_smaller(
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
) -> UnitMap | None:
    """The map, where all of it holds as it was traced on smaller inputs, on which the model does the same operator by
    operator; None where there are none, or where it has to be shown on its own.

    Nothing then rests on a number: no place at which code slices, no size that modules pass on, and no attribute that
    was recognised by a value which a number of places has too. What fails is searched for, and told, on the inputs
    themselves.
    """
    units, small = certain.units, certain.smaller
    if daring is not None or units.branched or len(small) != len(runs):
        return None
    if all(a is b for a, b in zip(small, runs, strict=True)) or len(states_of(model)) > 1:  # followed in one state only
        return None
    proof = _Proof(model, small, seed, deadline)
    found, failed = proof.failing(units, learn=False, together=True)
    if failed:
        return None
    found = replace(found, proven=True)
    told = described(model, found, small[0], seed, lambda: proof.prepared(found, 0))
    return told if told.notes == found.notes else None


def _proven(proof: _Proof, certain: Solution, daring: Solution | None) -> UnitMap:
    """The map with every group frozen that fails.

    `daring`, which cuts more than the trace vouches for, is taken if all of its groups pass together, or all but
    those that fail in the certain map too; else what is left of it, where that is more than of the certain map. Of
    that, tried until all groups pass together: the map as it is; with sizes substituted that modules' code passes on;
    and for the groups that fail then, the same two without attributes that were recognised by their value, which may
    be a coincidence (those of one value, then all), and with those that the code may compare its inputs with. If none
    of these passes whole, the one with which the fewest groups fail.
    """
    units, sites = certain.units, certain.sites
    tried = [(units, sites)]
    if daring is not None:
        unobserved = daring.units.without_observed(daring.units.prunable)
        dared = [daring.units, unobserved] if unobserved.attributes != daring.units.attributes else [daring.units]
        tried = [*((candidate, daring.sites) for candidate in dared), *tried]
    for candidate, known in tried:
        found = proof.whole(candidate, known)
        if found is not None:
            return found if candidate is not units else _dared(proof, found, tried[:-1])
    _, failed = proof.failing(units, learn=False, together=False)
    best, doubtful = units.freeze(_reasons(failed)), tuple(failed)
    *by_value, none = _fewer_observed(units, failed)
    compared = [
        *_compared(units, certain.compared, failed),
        *(_compared(units, (*certain.compared, *certain.filled), failed) if certain.filled else []),
    ]
    others = [
        (candidate, learn, any(other is one for one in by_value))
        for other in (*compared, *by_value, none)
        for candidate, learn in _with_and_without(other, sites, failed)
        if candidate is not units
    ]
    searched = []
    for candidate, learn, some_left_out in others:
        holds, again = proof.failing(candidate, learn, together=True, doubtful=doubtful)
        if not again:
            return holds
        if not (some_left_out and any(why.raised for why in again.values())):  # it was right to have them
            searched.append((candidate, learn))
    for candidate, learn in searched:
        holds, again = proof.failing(candidate, learn, together=False, doubtful=doubtful, most=len(failed))
        if not again:
            return holds
        if len(again) < len(failed):
            best, failed = holds.freeze(_reasons(again)), again
    reasons = {units.groups[g].name: why.reason for g, why in failed.items()}
    for candidate, known in tried[:-1]:
        same = {g: reasons[group.name] for g, group in enumerate(candidate.groups) if group.name in reasons}
        found = proof.whole(candidate.freeze(same), known) if same else None
        if found is not None:
            return found
    return _dared(proof, best, tried[:-1])


def _dared(proof: _Proof, best: UnitMap, maps: Sequence[tuple[UnitMap, Sequence[SizeSite]]]) -> UnitMap:
    """What is left of one of these maps without the groups that fail, if it can cut more than `best`. In doubt are only
    groups that `best` does not have, and what is left has run together."""
    settled = {_places(best.groups[g]) for g in best.prunable}
    for units, sites in maps:
        for candidate, learn in _with_and_without(units, sites, units.prunable):
            doubtful = [g for g in candidate.prunable if _places(candidate.groups[g]) not in settled]
            candidate, failed = proof.failing(candidate, learn, together=False, doubtful=doubtful)
            left = candidate.freeze(_reasons(failed))
            more = Solution(left, ()).positions > Solution(best, ()).positions
            if more and not proof.failing(left, learn=False, together=True)[1]:
                best = left
    return best


def _places(group: AxisGroup) -> tuple[tuple[Axis, bytes], ...]:
    """Where a group lies: equal for a group of another map that is the same."""
    return tuple((held.axis, held.positions.tobytes()) for held in group.axes)
