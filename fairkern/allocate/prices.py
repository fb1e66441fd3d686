"""What a unit costs: where units of very different size compete, a threshold is held against scores per cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fairkern.plans.cost import Cost
from fairkern.types import CostTerm, FloatArray, UnitMap

_LEAST = 1e-12  # of all costs: what costs nothing goes last


def together(scores: Mapping[int, FloatArray], same: Iterable[Sequence[int]]) -> dict[int, FloatArray]:
    """Scores of groups of which the same units go: what those of one number have in all of them."""
    found = dict(scores)
    for groups in same:
        if all(g in scores for g in groups):
            found |= dict.fromkeys(groups, np.sum([scores[g] for g in groups], axis=0))
    return found


def priced(
    units: UnitMap,
    scores: Mapping[int, FloatArray],
    terms: Sequence[CostTerm],
    same: Iterable[Sequence[int]] = (),
) -> dict[int, FloatArray]:
    """Scores over what each unit costs while all others stay; the mean of its group's, unless it is a branch.

    So one threshold gives up least for what is saved, whether that is a neuron or an MLP as a whole.
    """
    saved, least = costs(units, terms), _least(units, terms)
    alone = together(_alone(units, terms), same)
    found, branched = {}, units.branched
    for g, values in scores.items():
        group = units.groups[g]
        price = np.maximum(alone[g], least) if g in branched else saved[g] / group.sets
        found[g] = values / price
    return found


def costs(units: UnitMap, terms: Sequence[CostTerm]) -> FloatArray:
    """Per group, what goes with a unit of each of its sets while all others stay, above zero."""
    whole = np.zeros(len(units.groups), dtype=np.int64)
    return np.maximum(-Cost(units, terms).change(whole, whole - 1), _least(units, terms))


def _least(units: UnitMap, terms: Sequence[CostTerm]) -> float:
    return _LEAST * Cost(units, terms)(np.zeros(len(units.groups), dtype=np.int64))


def _alone(units: UnitMap, terms: Sequence[CostTerm]) -> dict[int, FloatArray]:
    """Per group, what goes with each unit alone."""
    found = {g: np.zeros(group.total) for g, group in enumerate(units.groups)}
    lengths = np.array([extent.length for extent in units.extents], dtype=np.float64)
    for term in terms:
        owners = {(units.extents[e].parts[0][0], units.extents[e].unit) for e in term.extents if units.extents[e].parts}
        for g, unit in owners:
            if unit is not None:
                found[g][unit] += term.coefficient * lengths[list(term.extents)].prod()
    return found
