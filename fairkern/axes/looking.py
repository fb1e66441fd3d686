"""Whether a run reads a tensor at all: looked at before a run is followed for its sake."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.model.autocast import forget_casts
from fairkern.model.nested import call_model, tensors_in
from fairkern.model.operator_mode import UncompiledMode
from fairkern.model.tensors import memory_of, tensor_of
from fairkern.model.untouched import Originals, forget


class _Reads(UncompiledMode):
    """Whether any operator is given one of these tensors, or another on its memory."""

    def __init__(self, tensors: Collection[Tensor], originals: Originals) -> None:
        super().__init__()
        self._ids = {id(tensor) for tensor in tensors}
        self._memories = {memory for tensor in tensors if (memory := memory_of(tensor)) is not None}
        self._originals = originals
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_in([args, kwargs]):
            self.found |= id(tensor) in self._ids or memory_of(tensor) in self._memories
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[number] if number < len(args) else kwargs.get(argument.name)
                for tensor in tensors_in(given):
                    self._originals.about_to_write(tensor)
        return func(*args, **kwargs)


def read_any(model: nn.Module, inputs: Any, names: Collection[str], originals: Originals) -> bool:
    """Whether the model, as it is, reads any of these parameters and buffers on these inputs.

    Cost: a forward pass. True where the model raises: the run that is followed will tell.
    """
    forget(model)
    forget_casts()
    looking = _Reads([tensor_of(model, name) for name in names], originals)
    try:
        with torch.no_grad(), looking:
            call_model(model, inputs)
    except Exception:
        return True
    return looking.found
