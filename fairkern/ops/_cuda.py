"""The only importer of the CUDA extension; knows why it is missing or cannot run."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch

from fairkern.errors import BackendError

INTERFACE = 1  # the extension's entry points that this version calls


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    try:
        from fairkern.ops import _extension_cuda as module
    except ImportError as error:
        return None, f"the CUDA extension is not built ({error}); reinstall with FAIRKERN_BUILD=cuda to see why"
    if module.INTERFACE != INTERFACE:
        return None, (
            f"the CUDA extension is of another version (interface {module.INTERFACE}, expected {INTERFACE}); "
            "reinstall fairkern"
        )
    return module, ""


@lru_cache(maxsize=64)
def _why_no_device(index: int) -> str:
    return str(extension().why_no_device(index))


def unavailable(device: torch.device) -> str | None:
    """None if the extension can be called for tensors on `device`, otherwise why not."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the CUDA backend runs on NVIDIA CUDA tensors, and this one is on {device}"
    module, reason = _load()
    if module is None:
        return reason
    return _why_no_device(0 if device.index is None else device.index) or None


def extension() -> ModuleType:
    """The extension module; BackendError with the reason if it cannot be loaded."""
    module, reason = _load()
    if module is None:
        raise BackendError(f"backend 'cuda' was asked for, but {reason}")
    return module


def built() -> dict[str, str | None]:
    """Where the extension is and what it was built for, or why it is missing."""
    module, reason = _load()
    if module is None:
        return {"path": None, "unavailable": reason}
    return {"path": str(module.__file__), "unavailable": None, "architectures": module.ARCHITECTURES}
