"""One cut of a model itself, in its own dtype: what a smaller sibling cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fairkern.compact.descriptors import tensors_of
from fairkern.deadline import Deadline
from fairkern.model.fused import running_as
from fairkern.model.nested import call_model
from fairkern.model.process import seed_torch
from fairkern.model.untouched import same_attributes, untouched
from fairkern.prove.branches import without_branches
from fairkern.prove.prepared import Prepared, experts_of, onward, own_random_state, tolerance_of
from fairkern.prove.states import states_of
from fairkern.prove.trial import failing
from fairkern.types import UnitMap


def differs(model: nn.Module, units: UnitMap, runs: Sequence[Any], seed: int, deadline: Deadline) -> str | None:
    """Why the model without half of all its units is not the masked model, on its own inputs; None if it is.

    Code may take another number, or another way, from a size on that the sibling does not have, or in one block of
    many. Nothing is copied and nothing is stirred: what is left is made beside the model. Rounding of coarse dtypes
    hides what is smaller than it.

    Cost: what the cut leaves, and a forward pass of both for every run (and state, and what the model goes on to).
    """
    bare = without_branches(units)
    tolerance = tolerance_of(held.tensor for held in tensors_of(model))
    with untouched(model), own_random_state(model), torch.no_grad():
        model.eval()
        for inputs in runs:
            before = _written(model)
            with same_attributes(model), running_as(model, experts_of(bare)):
                seed_torch(seed)
                calls, _ = onward(model, inputs, call_model(model, inputs))
            sharing = before == _written(model) is not None
            itself = Prepared(model, inputs, seed, tolerance, False, states_of(model), calls, sharing)
            found = failing(model, bare, inputs, seed=seed, together=True, prepared=itself, deadline=deadline)
            if found:
                return next(iter(found.values())).reason
    return None


def _written(model: nn.Module) -> list[int] | None:
    """How often each parameter was written; None where they do not count it (made in inference mode)."""
    parameters = list(model.parameters())
    return None if any(p.is_inference() for p in parameters) else [p._version for p in parameters]
