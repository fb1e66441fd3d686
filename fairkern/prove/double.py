"""Models in float64 compute in float64 throughout, also where their code asks for a coarser type."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.model.nested import map_tensors
from fairkern.model.operator_mode import UncompiledMode
from fairkern.prove.depthwise import depthwise

_CONVOLUTION = torch.ops.aten.convolution.default
_COARSER = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Double(UncompiledMode):
    """`x.float()`, `softmax(x, dtype=torch.float32)` and the like give float64, in scripted functions too.

    It looks at operators and not at torch's functions: torch takes no fused path under a mode for those, and the model
    may. Depthwise convolutions, which are slow in float64, are computed another way. `needed` tells whether anything
    asked for a coarser type or convolved so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _CONVOLUTION and not kwargs:
            convolved = depthwise(*args)
            if convolved is not None:
                self.needed = True
                return convolved
        made = func(*map(self._finer, args), **{key: self._finer(value) for key, value in (kwargs or {}).items()})
        return made if _aliases(func) else map_tensors(made, self._doubled)

    def _finer(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in _COARSER:
            self.needed = True
            return torch.float64
        return value

    def _doubled(self, tensor: Tensor) -> Tensor:
        if tensor.dtype not in _COARSER:
            return tensor
        self.needed = True
        return tensor.double()


@functools.cache
def _aliases(func: Any) -> bool:
    """Whether an operator gives a view of a tensor that it is given, or that tensor."""
    return any(r.alias_info is not None for r in func._schema.returns)


def in_double(model: nn.Module) -> AbstractContextManager[object]:
    """Within it a model whose floating parameters are all float64 computes nothing in a coarser type.

    A softmax in float32 over fewer positions rounds otherwise: two models that are equal would differ by 1e-8, which
    is more than a proof in float64 may allow.
    """
    floating = [p for p in model.parameters() if p.is_floating_point()]
    return Double() if floating and all(p.dtype == torch.float64 for p in floating) else nullcontext()
