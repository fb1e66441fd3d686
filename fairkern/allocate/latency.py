"""Milliseconds as a function of how many units every group loses: a sum of products like parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fairkern.errors import InputError
from fairkern.plans.cost import Cost, Order
from fairkern.types import CostTerm, FloatArray, IndexArray, LatencyCut, LatencyTable, UnitMap

_FIXED = (CostTerm(1.0, ()),)
Features = dict[str, tuple[CostTerm, ...]]  # what milliseconds may follow, each 1 for the whole model


def latency_cost(units: UnitMap, table: LatencyTable, order: Order | None = None) -> Cost:
    """The predicted milliseconds of a removal. Raises InputError where the table was measured on another model.

    `order`: as of `Cost`."""
    return Cost(units, latency_terms(units, table), order)


def latency_terms(units: UnitMap, table: LatencyTable) -> list[CostTerm]:
    """The products that add up to the predicted milliseconds."""
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
    return products


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

    def solved(features: Features, ms: Sequence[float | None]) -> dict[str, float]:
        costs = [Cost(units, terms) for terms in features.values()]
        seen = [k for k, taken in enumerate(ms) if taken is not None]
        design = np.array([[cost(fitted[k].removed) for cost in costs] for k in seen])
        found, _ = nnls(design * weights[seen][:, None], np.array([ms[k] for k in seen]) * weights[seen])
        return {what: float(value) for what, value in zip(features, found, strict=True) if value > 0}

    def layer(path: str) -> dict[str, float]:
        """Of a layer in a branch, by the cuts in which that is there, as if all were."""
        features, ms = _layer(units, parameters, path), [cut.layers.get(path) for cut in fitted]
        alive = {e for terms in features.values() for term in terms for e in term.extents if _branch(units, e)}
        if not alive:
            return solved(features, [0.0 if taken is None else taken for taken in ms])
        plain = {
            what: tuple(CostTerm(t.coefficient, tuple(e for e in t.extents if e not in alive)) for t in terms)
            for what, terms in features.items()
        }
        return solved(plain, ms) if any(taken is not None for taken in ms) else {"fixed": whole.layers[path]}

    layers = {path: layer(path) for path in whole.layers}
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
    return CostTerm(
        term.coefficient, tuple(e for e in term.extents if units.extents[e].unit is None or _branch(units, e))
    )


def _branch(units: UnitMap, extent: int) -> bool:
    """Whether it is 1 as long as a branch of a residual block stays, whose work is then done by none."""
    shrinks = units.extents[extent]
    if shrinks.unit is None:
        return False
    return shrinks.parts[0][0] in units.branched


def _layer(units: UnitMap, parameters: Sequence[str], path: str) -> Features:
    own = _own(units, parameters, path)
    alive = tuple(dict.fromkeys(e for term in own.values() for e in _split(units, term)[0]))
    features: Features = {"fixed": (CostTerm(1.0, alive),), "elements": _shares(units, list(own.values()))}
    seen: set[int] = set()
    for name, term in own.items():
        for k, e in enumerate(_split(units, term)[1]):
            if e not in seen:
                seen.add(e)
                features[f"{name}:{k}"] = _shares(units, [CostTerm(1.0, (*alive, e))])
    return features


def _rest(units: UnitMap, parameters: Sequence[str], outputs: Mapping[str, float]) -> Features:
    own = {name: _timed(units, term) for name, term in zip(parameters, units.params, strict=True)}
    made = []
    for name, elements in outputs.items():
        parameter, _, k = name.rpartition(":")
        if parameter not in own or int(k) >= len(_split(units, own[parameter])[1]):
            raise InputError(f"the latency table names {name!r}, which this unit map does not have: measure it again")
        alive, sizes = _split(units, own[parameter])
        made.append(CostTerm(elements / units.extents[sizes[int(k)]].length, (*alive, sizes[int(k)])))
    features = {"fixed": _FIXED, "flops": _shares(units, units.flops), "outputs": _shares(units, made)}
    for g in sorted(units.branched):  # what they take beside their layers
        features[f"branch {units.groups[g].name}"] = _shares(units, _lives(units, g))
    return features


def _split(units: UnitMap, term: CostTerm) -> tuple[tuple[int, ...], list[int]]:
    """Of a parameter's extents those of the branches that it lies in, and its sizes."""
    alive = tuple(e for e in term.extents if _branch(units, e))
    return alive, [e for e in term.extents if e not in alive]


def _lives(units: UnitMap, group: int) -> list[CostTerm]:
    """One for every branch of a group that stays."""
    extents = (e for e, x in enumerate(units.extents) if x.unit is not None and x.parts[0][0] == group)
    return [CostTerm(1.0, (e,)) for e in extents]


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
            for k, e in enumerate(_split(units, own[name])[1]):
                if units.extents[e].length in shape:
                    found[f"{path}.{name}:{k}" if path else f"{name}:{k}"] = float(elements)
                    break
    return found
