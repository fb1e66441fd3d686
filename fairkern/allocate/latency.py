"""Milliseconds as a function of how many units every group loses: a sum of products like parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fairkern.errors import InputError
from fairkern.plans.cost import Cost
from fairkern.types import CostTerm, FloatArray, IndexArray, LatencyCut, LatencyTable, UnitMap

_FIXED = (CostTerm(1.0, ()),)
Features = dict[str, tuple[CostTerm, ...]]  # what milliseconds may follow, each 1 for the whole model


def latency_cost(units: UnitMap, table: LatencyTable) -> Cost:
    """The predicted milliseconds of a removal. Raises InputError where the table was measured on another model."""
    if {name: tuple(shape) for name, shape in table.shapes.items()} != dict(units.shapes):
        raise InputError("the latency table was measured on another model than these scores: measure it again")
    found = [(_layer(units, table.parameters, path), terms) for path, terms in table.layers.items()]
    found.append((_rest(units, table.parameters, table.outputs), table.rest))
    products = []
    for features, terms in found:
        for what, ms in terms.items():
            if what not in features:
                raise InputError(
                    f"the latency table names {what!r}, which this unit map does not have: measure it again"
                )
            products += [CostTerm(ms * term.coefficient, term.extents) for term in features[what]]
    return Cost(units, products)


def fit(
    units: UnitMap, parameters: Sequence[str], cuts: Sequence[LatencyCut], key: Mapping[str, object]
) -> LatencyTable:
    """The table that these cuts tell: every layer's milliseconds by non-negative least squares, in relative terms.

    Args:
        units: the map that the removals are of.
        parameters: names of the model's parameters, in its order.
        cuts: measured; the first is the whole model, which is not fitted where there are others.
        key: kept as it is.

    No term is negative, so a smaller model is never predicted to be slower.
    """
    from scipy.optimize import nnls  # takes longer to import than all else: only tables of latency need it

    whole, fitted = cuts[0], cuts[1:] or cuts
    outputs = _outputs(units, parameters, whole)
    weights = np.array([1 / cut.ms for cut in fitted])

    def solved(features: Features, ms: Sequence[float]) -> dict[str, float]:
        costs = [Cost(units, terms) for terms in features.values()]
        design = np.array([[cost(cut.removed) for cost in costs] for cut in fitted])
        found, _ = nnls(design * weights[:, None], np.array(ms) * weights)
        return {what: float(value) for what, value in zip(features, found, strict=True) if value > 0}

    layers = {
        path: solved(_layer(units, parameters, path), [cut.layers.get(path, 0.0) for cut in fitted])
        for path in whole.layers
    }
    rest = solved(_rest(units, parameters, outputs), [cut.ms - sum(cut.layers.values()) for cut in fitted])
    table = LatencyTable(layers, rest, outputs, tuple(parameters), dict(units.shapes), whole.ms, 0.0, dict(key))
    return replace(table, error=float(np.abs(_errors(units, table, fitted)).max()))


def _errors(units: UnitMap, table: LatencyTable, cuts: Sequence[LatencyCut]) -> FloatArray:
    cost = latency_cost(units, table)
    return np.array([cost(cut.removed) / cut.ms - 1 for cut in cuts])


def corrected(units: UnitMap, table: LatencyTable, removed: IndexArray, share: float) -> LatencyTable:
    """The table scaled so that this removal takes a `share` of the whole model's time."""
    return table.scaled(share * table.whole / latency_cost(units, table)(removed))


def _own(units: UnitMap, parameters: Sequence[str], path: str) -> dict[str, CostTerm]:
    """Parameters that a module holds itself, by their short name."""
    terms = zip(parameters, units.params, strict=True)
    return {name.rpartition(".")[2]: _timed(units, term) for name, term in terms if name.rpartition(".")[0] == path}


def _timed(units: UnitMap, term: CostTerm) -> CostTerm:
    """A parameter, whether or not the expert of a list that it belongs to stays: its tokens would go to another."""
    return CostTerm(term.coefficient, tuple(e for e in term.extents if units.extents[e].unit is None))


def _layer(units: UnitMap, parameters: Sequence[str], path: str) -> Features:
    own = _own(units, parameters, path)
    features: Features = {"fixed": _FIXED, "elements": _shares(units, list(own.values()))}
    seen: set[int] = set()
    for name, term in own.items():
        for k, e in enumerate(term.extents):
            if e not in seen:
                seen.add(e)
                features[f"{name}:{k}"] = _shares(units, [CostTerm(1.0, (e,))])
    return features


def _rest(units: UnitMap, parameters: Sequence[str], outputs: Mapping[str, float]) -> Features:
    own = {name: _timed(units, term) for name, term in zip(parameters, units.params, strict=True)}
    made = []
    for name, elements in outputs.items():
        parameter, _, k = name.rpartition(":")
        if parameter not in own or int(k) >= len(own[parameter].extents):
            raise InputError(f"the latency table names {name!r}, which this unit map does not have: measure it again")
        e = own[parameter].extents[int(k)]
        made.append(CostTerm(elements / units.extents[e].length, (e,)))
    return {"fixed": _FIXED, "flops": _shares(units, units.flops), "outputs": _shares(units, made)}


def _shares(units: UnitMap, terms: Sequence[CostTerm]) -> tuple[CostTerm, ...]:
    """The same terms, as shares of what they are in the whole model."""
    total = Cost(units, terms)(np.zeros(len(units.groups), dtype=np.int64))
    return tuple(CostTerm(term.coefficient / total, term.extents) for term in terms) if total else _FIXED


def _outputs(units: UnitMap, parameters: Sequence[str], whole: LatencyCut) -> dict[str, float]:
    """Elements that layers return, by the dimension that they follow; what cannot shrink is left out.

    A bias has the length of the output; without one it is the first dimension whose length the output has.
    """
    found: dict[str, float] = {}
    for path, (elements, shape) in whole.outputs.items():
        own = _own(units, parameters, path)
        for name in sorted(own, key=lambda name: name != "bias")[:1]:
            for k, e in enumerate(own[name].extents):
                if units.extents[e].length in shape:
                    found[f"{path}.{name}:{k}" if path else f"{name}:{k}"] = float(elements)
                    break
    return found
