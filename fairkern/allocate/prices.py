"""What a unit costs: where units of very different size compete, a threshold is held against scores per cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairkern.plans.cost import Cost
from fairkern.plans.serving import Tie
from fairkern.types import CostTerm, FloatArray, UnitMap

_LEAST = 1e-12  # of all costs: what costs nothing goes last


def together(units: UnitMap, ties: Sequence[Tie], scores: Mapping[int, FloatArray]) -> dict[int, FloatArray]:
    """Scores with those of whole blocks for their branches, where the blocks of a list go as a whole only."""
    found = dict(scores)
    for tie in _blocks(units, ties):
        if all(g in scores for g in tie):
            total = np.sum([scores[g] for g in tie], axis=0)
            found.update(dict.fromkeys(tie, total))
    return found


def _blocks(units: UnitMap, ties: Sequence[Tie]) -> list[tuple[int, ...]]:
    """Groups of branches that are counted in blocks, and tied for that."""
    tied = {g for tie in ties for g in tie.groups}
    return [field.groups for field in units.config if field.blocks and tied.issuperset(field.groups)]


def priced(
    units: UnitMap, scores: Mapping[int, FloatArray], terms: Sequence[CostTerm], ties: Sequence[Tie] = ()
) -> dict[int, FloatArray]:
    """Scores over what each unit costs while all others stay; the mean of its group's, unless it is a branch.

    So one threshold gives up least for what is saved, whether that is a neuron or an MLP as a whole. Branches that are
    tied cost what their block does.
    """
    whole = np.zeros(len(units.groups), dtype=np.int64)
    cost = Cost(units, terms)
    least = _LEAST * cost(whole)
    saved = np.maximum(-cost.change(whole, whole - 1), least)
    alone = _alone(units, terms)
    for tie in _blocks(units, ties):
        alone.update(dict.fromkeys(tie, np.sum([alone[g] for g in tie], axis=0)))
    found, branched = {}, units.branched
    for g, values in scores.items():
        group = units.groups[g]
        price = np.maximum(alone[g], least) if g in branched else saved[g] / group.sets
        found[g] = values / price
    return found


def _alone(units: UnitMap, terms: Sequence[CostTerm]) -> dict[int, FloatArray]:
    """Per group, what goes with each unit alone."""
    found = {g: np.zeros(group.units) for g, group in enumerate(units.groups)}
    lengths = np.array([extent.length for extent in units.extents], dtype=np.float64)
    for term in terms:
        owners = {(units.extents[e].parts[0][0], units.extents[e].unit) for e in term.extents if units.extents[e].parts}
        for g, unit in owners:
            if unit is not None:
                found[g][unit] += term.coefficient * lengths[list(term.extents)].prod()
    return found
