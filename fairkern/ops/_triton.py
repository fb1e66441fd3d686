"""The only importer of Triton outside kernel files: knows why it cannot run, and launches kernels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from fairkern import env

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels read; they add in float32
OLDEST = (8, 0)  # compute capability that the kernels are compiled and tested for


@lru_cache(maxsize=1)
def _missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton is not installed ({error})"
    return None


def unavailable(device: torch.device) -> str | None:
    """None if kernels can run on tensors of `device`, otherwise why not. Triton, which takes 80 MB, is imported only
    where they might."""
    interpreted = env.triton_interpreted()
    if not interpreted and device.type != "cuda":
        return f"the Triton backend runs on CUDA tensors, and this one is on {device}"
    reason = _missing()
    if reason is not None:
        return reason
    if interpreted:
        if device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 runs kernels in the interpreter, on CPU tensors, and this one is on {device}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{device} is older than compute capability {OLDEST[0]}.{OLDEST[1]}"
    return None


def unsupported(dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take floating-point tensors of `dtype`, or None."""
    return None if dtype in FLOATS else f"the Triton kernels add in float32, and the input is {dtype}"


def launch(
    kernel: Any, programs: int, device: torch.device, arguments: Mapping[str, Any], warps: int, stages: int = 1
) -> None:
    """Start `programs` programs of `kernel` on the current stream of `device`."""
    if programs == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](**arguments, num_warps=warps, num_stages=stages)
