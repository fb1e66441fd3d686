"""The only importer of the compiled extension; knows why it is missing."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from fairkern.errors import BackendError, InputError

INTERFACE = 9  # the extension's entry points that this version calls
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # as csrc/cpu/floats.h


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    try:
        from fairkern.ops import _extension_cpu as module
    except ImportError as error:
        return None, f"the compiled extension is not built ({error}); reinstall with FAIRKERN_BUILD=cpu to see why"
    if module.INTERFACE != INTERFACE:
        return None, (
            f"the compiled extension is of another version (interface {module.INTERFACE}, expected {INTERFACE}); "
            "reinstall fairkern"
        )
    return module, ""


def unavailable() -> str | None:
    """None if the extension can be called, otherwise why not."""
    module, reason = _load()
    return reason if module is None else None


def extension() -> ModuleType:
    """The extension module; BackendError with the reason if it cannot be loaded."""
    module, reason = _load()
    if module is None:
        raise BackendError(f"backend 'native' was asked for, but {reason}")
    return module


def address(name: str, tensor: Tensor, dtype: torch.dtype) -> int:
    """Where the values of a tensor begin, for the extension to read or write with its shape and strides.

    InputError where they do not lie in CPU memory in this type: on another device, in another layout or type, or made
    lazily (a negation, a conjugate, zeros that take no memory).
    """
    lazy = tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor()
    if not tensor.is_cpu or tensor.layout != torch.strided or tensor.dtype != dtype or lazy:
        how = ", made lazily" if lazy else ""
        raise InputError(
            f"{name} is {tensor.dtype} on {tensor.device}, {tensor.layout}{how}; the compiled extension reads {dtype} "
            "in CPU memory: pass a dense tensor there"
        )
    return tensor.data_ptr()
