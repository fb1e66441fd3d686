"""Whether the model's configuration follows a cut: a model built from it has the shapes that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fairkern.axes import config_fields
from fairkern.compact.built import built_with
from fairkern.compact.descriptors import shapes_after
from fairkern.model.raised import in_words
from fairkern.model.tensors import named_tensors
from fairkern.plans.build import build
from fairkern.plans.removals import NONE, random_removal
from fairkern.prove.trial import Prepared, failure
from fairkern.types import Plan, UnitMap


def described(
    model: nn.Module, units: UnitMap, inputs: Any, seed: int, prepared: Callable[[], Prepared] | None = None
) -> UnitMap:
    """The map with the fields of the model's configuration that follow a cut.

    `prepared()`: the copy that a proof on these inputs with this seed used.

    Shown by cutting every group of theirs by one share: a model built from the configuration has the shapes that
    are left, and the cut model still computes what the masked one does. Heads are left out if it fails with them.
    """
    fields = config_fields(model, units.groups)
    inner = [f for f in fields if all(units.groups[g].kind != "head" for g in f.groups)]
    notes: list[str] = []
    half = random_removal(units, 0.5, seed)
    for tried in (fields, inner) if len(inner) < len(fields) else (fields,):
        cut = {g for f in tried for g in f.groups if units.groups[g].units > 1}
        if not cut:
            continue
        removed = [half[g] if g in cut else NONE for g in range(len(units.groups))]
        candidate = replace(units, config=tuple(tried))
        plan = build(candidate, removed)
        reason = undescribed(model, plan, shapes_after(plan)) or failure(
            model, candidate, removed, inputs, seed=seed, prepared=None if prepared is None else prepared()
        )
        if reason is None:
            return replace(candidate, notes=(*units.notes, *notes))
        names = ", ".join(f.name for f in tried)
        notes.append(f"the configuration ({names}) does not describe a pruned model: {reason}")
    return replace(units, notes=(*units.notes, *notes))


def undescribed(model: nn.Module, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a model built from the changed configuration, on the meta device, does not have these shapes; None if it has.

    Cost: building the model without its numbers.
    """
    try:
        built = built_with(model, plan.config)
    except Exception as error:  # fields that cannot be set or do not fit together, a class that is built otherwise
        return in_words(error, model, 120)
    found = named_tensors(built)
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape:
            return f"{name} would have the shape {tuple(found[name].shape) if name in found else None}, not {shape}"
    return None
