"""On what a map is proven: on the whole model, or on a smaller sibling of it that speaks for it."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fairkern.axes import Solution
from fairkern.compact.descriptors import tensors_of
from fairkern.deadline import Deadline
from fairkern.errors import InputError
from fairkern.model.fields import configurations
from fairkern.model.untouched import valueless
from fairkern.options import choose, flag
from fairkern.prove.alike import NoSibling
from fairkern.prove.at_size import differs
from fairkern.prove.sibling import proven_by_sibling
from fairkern.prove.sizes import weight_bytes, whole_bytes
from fairkern.prove.strategy import proven
from fairkern.prove.trial import check_values
from fairkern.types import UnitMap

WHOLE_BELOW = 2**28  # bytes of weights: smaller models are proven whole


class Verify(enum.Enum):
    """How a map is proven. AUTO: by a sibling without values and from `WHOLE_BELOW` on, else whole."""

    AUTO = True
    NONE = False
    WHOLE = "whole"
    SIBLING = "sibling"

    @classmethod
    def given(cls, value: Any) -> Verify:
        """The member that a caller names. Raises InputError."""
        if isinstance(value, str):
            return choose(cls, "verify", value)
        return cls(flag("verify", value, "True, False, 'whole' or 'sibling'"))

    def by_sibling(self, model: nn.Module) -> bool:
        """Whether a sibling of this model is looked for. Raises InputError for one without values that has none."""
        if self is Verify.SIBLING:
            return True
        described = next(configurations(model), None) is not None
        if self is Verify.AUTO and described:
            return weight_bytes(model) >= WHOLE_BELOW or any(valueless(held.tensor) for held in tensors_of(model))
        if self is not Verify.NONE:
            check_values(model)
        return False


def proof_bytes(model: nn.Module, verify: Any = True) -> int:
    """What the proof of a trace takes at most beside the model, in bytes, without the activations of its runs.

    On the whole model: a copy of what is floating point in float64, and what a cut leaves of it. By a sibling: no more
    than the weights, since one that takes more is not used where the model can be proven whole.
    """
    how = Verify.given(verify)
    if how is Verify.NONE:
        return 0
    if how.by_sibling(model):
        return weight_bytes(model)
    return whole_bytes(model)


def proven_as(
    how: Verify,
    model: nn.Module,
    certain: Solution,
    daring: Solution | None,
    runs: Sequence[Any],
    seed: int,
    deadline: Deadline,
    unused: Collection[str] = (),
    depth: bool = False,
) -> UnitMap:
    """The map, proven as was asked for; a note says why a large model was proven whole.

    Raises InputError where no sibling speaks for a model that has no values, or that was not to be proven whole.
    """
    if not how.by_sibling(model):
        return proven(model, certain, daring, runs, seed, deadline)
    most = weight_bytes(model) if how is Verify.AUTO else None
    try:
        units = proven_by_sibling(model, certain, daring, runs, seed, deadline, unused, depth, most)
        if not any(valueless(held.tensor) for held in tensors_of(model)):
            said = differs(model, units, runs, seed, deadline)
            if said is not None:
                raise NoSibling(f"of the model itself, {said}")
        return units
    except NoSibling as why:
        said = f"no smaller {type(model).__name__} speaks for it: {why}"
        if how is Verify.SIBLING:
            raise InputError(f"{said}; pass verify='whole' to prove it on a copy, or verify=False") from why
        check_values(model, f"{said}, and so groups cannot be proven, pass verify=False")
        units = proven(model, certain, daring, runs, seed, deadline)
        return replace(units, notes=(*units.notes, f"proven on a whole copy, as {said}"))
