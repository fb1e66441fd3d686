"""A sum over data as they are, the same in every process that has the same."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest(value: Any) -> str:
    """Of numbers, texts, arrays, tensors, dataclasses and what holds them; functions count by their names."""
    state = hashlib.sha256()
    for part in _parts(value):
        state.update(part)
    return state.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        yield f"t{dense.dtype}{tuple(dense.shape)}".encode()
        yield dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"a{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"d{type(value).__qualname__}(".encode()
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
        yield b")"
    elif isinstance(value, Mapping):
        yield b"{"
        yield from sorted(b"".join((*_parts(key), *_parts(inner))) for key, inner in value.items())
        yield b"}"
    elif isinstance(value, Set):
        yield b"s{"
        yield from sorted(b"".join(_parts(inner)) for inner in value)
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        for inner in value:
            yield from _parts(inner)
        yield b"]"
    elif isinstance(value, (str, bytes, bool, int, float, complex, type(None), np.generic, torch.dtype, torch.device)):
        yield f"{type(value).__name__}:{value!r};".encode()
    else:  # a function, an enumeration, an object of somebody else's
        named = getattr(value, "__qualname__", None) or str(getattr(value, "name", type(value).__qualname__))
        yield f"{type(value).__qualname__}:{named};".encode()
