"""Models in float64 compute in float64 throughout, also where their code asks for a coarser type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_COARSER = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


class _Double(TorchFunctionMode):
    """`x.float()`, `softmax(x, dtype=torch.float32)` and the like give float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            func = Tensor.double
        return func(*map(_finer, args), **{key: _finer(value) for key, value in (kwargs or {}).items()})


def _finer(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _COARSER else value


def in_double(model: nn.Module) -> AbstractContextManager[object]:
    """Within it a model whose floating parameters are all float64 computes nothing in a coarser type.

    A softmax in float32 over fewer positions rounds otherwise: two models that are equal would differ by 1e-8, which
    is more than a proof in float64 may allow.
    """
    floating = [p for p in model.parameters() if p.is_floating_point()]
    return _Double() if floating and all(p.dtype == torch.float64 for p in floating) else nullcontext()
