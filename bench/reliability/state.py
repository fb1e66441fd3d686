"""What a model and the process are before, and what differs afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HELD = ("_parameters", "_buffers", "_modules")


class Before:
    """Of some models and the process, as they are when it is made."""

    def __init__(self, *models: nn.Module) -> None:
        self._models = models
        self._then = self._now()

    def differences(self) -> list[str]:
        """What is not as it was; threads have a moment to end."""
        until = time.monotonic() + 2
        while threading.active_count() > self._then["threads"] and time.monotonic() < until:
            time.sleep(0.001)
        now = self._now()
        return [key for key in {**self._then, **now} if not _same(self._then.get(key), now.get(key))]

    def _now(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "threads": threading.active_count(),
            "signal handler": signal.getsignal(signal.SIGINT),
            "torch's random state": torch.get_rng_state(),
            "numpy's random state": np.random.get_state()[1].tolist(),  # noqa: NPY002
            "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
            "gradients": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "function modes": torch._C._len_torch_function_stack(),
            "dispatch modes": torch._C._len_torch_dispatch_stack(),
            "default type": torch.get_default_dtype(),
        }
        for i, model in enumerate(self._models):
            for path, module in model.named_modules():
                name = f"model {i} {path or 'itself'}"
                found[f"{name}: class"] = type(module)
                found[f"{name}: attributes"] = _plain({k: v for k, v in vars(module).items() if k not in _HELD})
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                value = tensor.detach().clone()
                found[f"model {i} {name}"] = (id(tensor), tensor.requires_grad, tensor.grad is None, value)
        return found


def hooks(model: nn.Module) -> int:
    return sum(len(v) for m in model.modules() for k, v in vars(m).items() if "hook" in k and isinstance(v, Mapping))


def memory() -> int:
    """Bytes that the process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files() -> int:
    """Files that the process has open."""
    return len(os.listdir("/proc/self/fd"))


def _plain(value: Any) -> Any:
    """By value where it has one, by identity else."""
    if isinstance(value, Mapping):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
