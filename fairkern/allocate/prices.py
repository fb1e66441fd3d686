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
    saved: FloatArray,
    same: Iterable[Sequence[int]] = (),
) -> dict[int, FloatArray]:
    """Scores over what each unit costs while all others stay; the mean of its group's, unless it is a branch.

    So one threshold gives up least for what is saved, whether that is a neuron or an MLP as a whole. `saved`: of these
    `terms`, from `costs`.
    """
    price: dict[int, FloatArray] = {g: saved[g] / units.groups[g].sets for g in scores}
    if units.branched:
        alone, least = together(_alone(units, terms), same), _least(Cost(units, terms))
        price |= {g: np.maximum(alone[g], least) for g in units.branched.intersection(scores)}
    return {g: values / price[g] for g, values in scores.items()}


def costs(units: UnitMap, terms: Sequence[CostTerm]) -> FloatArray:
    """Per group, what goes with a unit of each of its sets while all others stay, above zero."""
    cost = Cost(units, terms)
    whole = np.zeros(cost.groups, dtype=np.int64)
    return np.maximum(-cost.change(whole, whole - 1), _least(cost))


def _least(cost: Cost) -> float:
    return _LEAST * cost(np.zeros(cost.groups, dtype=np.int64))


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
