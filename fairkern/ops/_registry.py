"""Which backend runs an operator, and why another cannot."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import metadata
from typing import Any

import torch

from fairkern.errors import BackendError, InputError
from fairkern.ops import _check, _cuda, _native, _triton, _tuned
from fairkern.options import meant


class Backend(str, Enum):
    """Implementations of an operator, in the order in which `auto` prefers them."""

    NATIVE = "native"
    CUDA = "cuda"
    TRITON = "triton"
    REFERENCE = "reference"


OPERATORS: Mapping[str, tuple[Backend, ...]] = {
    "class_wasserstein": (Backend.NATIVE, Backend.TRITON, Backend.REFERENCE),
    "wasserstein_1d": (Backend.NATIVE, Backend.REFERENCE),
    "taylor": (Backend.NATIVE, Backend.TRITON, Backend.REFERENCE),
    "project": (Backend.NATIVE, Backend.TRITON, Backend.REFERENCE),
    "gram": (Backend.NATIVE, Backend.TRITON, Backend.REFERENCE),
    "gather": (Backend.NATIVE, Backend.CUDA, Backend.TRITON, Backend.REFERENCE),
    "tod_curve": (Backend.NATIVE, Backend.REFERENCE),
}


def _why_not_reference(device: torch.device) -> str | None:
    return None


def _why_not_native(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the native backend runs on CPU tensors, and this one is on {device}"
    return _native.unavailable()


_WHY_NOT: Mapping[Backend, Callable[[torch.device], str | None]] = {
    Backend.REFERENCE: _why_not_reference,
    Backend.NATIVE: _why_not_native,
    Backend.CUDA: _cuda.unavailable,
    Backend.TRITON: _triton.unavailable,
}


_NAMES = ("auto", *(b.value for b in Backend))


def resolve(
    op: str, backend: str, device: torch.device, unsupported: Mapping[Backend, str | None] | None = None
) -> Backend:
    """The backend to call: the one asked for, or for "auto" the first that can run on `device`.

    `unsupported` gives reasons that lie in the arguments of this call. InputError for an unknown name,
    BackendError with the reason for one that cannot run.
    """
    known = OPERATORS[op]
    if not isinstance(backend, str) or backend not in _NAMES:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(_NAMES)}{meant(backend, _NAMES)}")

    def why_not(candidate: Backend) -> str | None:
        if candidate not in known:
            return f"{op} has no {candidate.value} implementation (it has: {', '.join(b.value for b in known)})"
        return (unsupported or {}).get(candidate) or _WHY_NOT[candidate](device)

    if backend != "auto":
        asked = Backend(backend)
        reason = why_not(asked)
        if reason is not None:
            raise BackendError(f"{op}: backend {backend!r} cannot run here: {reason}")
        return asked
    return next(candidate for candidate in known if why_not(candidate) is None)


def backends(device: torch.device | str = "cpu") -> dict[str, dict[str, str | None]]:
    """Per operator and backend: None if it can run on `device`, otherwise why not.

    Example:
        >>> backends()["gather"]["reference"] is None
        True
    """
    on = _check.device(device)
    return {op: {b.value: _WHY_NOT[b](on) for b in known} for op, known in OPERATORS.items()}


def describe() -> dict[str, Any]:
    """What the operators run on: extension, instruction set, threads, versions, backends per operator."""
    reason = _native.unavailable()
    built: dict[str, Any] = {"path": None, "unavailable": reason}
    if reason is None:
        module = _native.extension()
        built.update(path=module.__file__, **module.build())
    return {
        "extension": built,
        "cuda_extension": _cuda.built(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
        },
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "launch_settings": _tuned.reasons(),
        "operators": backends(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
