"""Which activations hold rows that the model has chosen by values of its own: another model chooses others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fairkern.model.nested import tensors_in
from fairkern.model.operator_mode import UncompiledMode

_PICKING = {torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather, torch.ops.aten.take}
_ADDING = {torch.ops.aten.add, torch.ops.aten.add_}
_PUTTING = {
    getattr(torch.ops.aten, name + end)
    for name in ("index_add", "index_put", "index_copy", "scatter", "scatter_add", "scatter_reduce")
    for end in ("", "_")
}


class Chosen(UncompiledMode):
    """Follows what is picked by decisions over computed values: the largest of scores, boxes that suppression leaves.

    A tensor is *computed* where a weight of the model went into it, a *decision* where it says something of computed
    values in whole numbers (indices of a sort, places of a mask), and *chosen* where rows were picked by a decision, or
    anything chosen went into it. What is put back where it was picked from (the tokens of an expert) is chosen no more,
    nor what is added to something of its shape that came of the inputs without a choice (a residual stream).
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self._computed = WeakTensorKeyDictionary(dict.fromkeys(model.parameters(), True))
        self._fed = WeakTensorKeyDictionary(dict.fromkeys(tensors_in(inputs), True))  # an input went into these
        self._decisions, self._chosen = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._sources: set[torch.Size] = set()  # rows of what was picked from, and was not chosen itself

    def holds(self, tensor: Tensor) -> bool:
        """Whether the rows of this tensor were chosen."""
        return tensor in self._chosen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(tensors_in([args, kwargs or {}]))
        computed = any(t in self._computed or t in self._decisions for t in given)
        chosen = any(t in self._chosen for t in given)
        kind = func.overloadpacket
        if kind in _PUTTING:
            chosen = args[0] in self._chosen or (chosen and args[0].shape[:1] not in self._sources)
        elif kind in _PICKING and any(t in self._decisions for t in given[1:]):
            if not chosen:
                self._sources.add(args[0].shape[:1])
            chosen = True
        elif kind in _ADDING:
            chosen = chosen and not any(self._stays(t, result) for t in given)
        fed = any(t in self._fed for t in given)
        for t in tensors_in(result):
            if fed:
                self._fed[t] = True
            if computed or chosen:
                (self._computed if t.is_floating_point() else self._decisions)[t] = True
            if chosen:
                self._chosen[t] = True
        return result

    def _stays(self, t: Tensor, result: Tensor) -> bool:
        """Whether this has the rows of `result`, and any model would compute it for the same ones."""
        return t.shape == result.shape and t in self._fed and t not in self._chosen
