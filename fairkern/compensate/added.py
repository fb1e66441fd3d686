"""How many numbers compensation is going to add to a cut model: biases of weights that have none."""

from __future__ import annotations

from torch import nn

from fairkern.compact.descriptors import shapes_left
from fairkern.compensate.fit import Compensation
from fairkern.compensate.intercepts import Biases, Places
from fairkern.compensate.one_shot import decided
from fairkern.model.linear import made_dim
from fairkern.types import Plan, Scores


def added_numbers(model: nn.Module, plan: Plan, scores: Scores, method: Compensation, biases: Biases) -> int:
    """Those that `cut` adds to what `plan` leaves, which no plan counts; with what fields of a configuration bring.

    Reads shapes, and no values. Cost: milliseconds; of a model with a configuration, building it on the meta device
    once for every field about biases.
    """
    if method is Compensation.NONE or biases is Biases.NONE:
        return 0
    places = Places(model, plan, scores.units, biases)
    given = [case.item.axis for case in decided(model, plan, scores, method, places.why_not) if case.gives_bias]
    left, found = shapes_left(plan), 0
    for name in places.brought(given):
        path = name.rpartition(".")[0]
        found += left[f"{path}.weight".lstrip(".")][made_dim(model.get_submodule(path))]
    return found
