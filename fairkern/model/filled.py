"""Buffers that a forward pass fills for itself (a position bias, kept for the next call): no part of the model."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def filled_buffers(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Buffers of these modules that hold a tensor, are not saved, and that the constructor left empty and `forward`
    fills."""
    for module in modules:
        if module._non_persistent_buffers_set:
            kind: Any = type(module)
            for name in sorted(module._non_persistent_buffers_set & _filled_by_forward(kind)):
                if module._buffers.get(name) is not None:
                    yield module, name


@functools.cache
def _filled_by_forward(kind: Any) -> frozenset[str]:
    """Buffers that a class's constructors register as None, and that its `forward` registers or sets."""
    empty = set()
    for code in (getattr(made.__dict__.get("__init__"), "__code__", None) for made in kind.__mro__):
        steps = list(dis.get_instructions(code)) if code is not None else []
        for i, step in enumerate(steps):
            if step.argval == "register_buffer":
                given = [s.argval for s in steps[i + 1 : i + 4] if s.opname.startswith("LOAD_CONST")]
                if len(given) > 1 and type(given[0]) is str and given[1] is None:
                    empty.add(given[0])
    code = getattr(kind.forward, "__code__", None)
    if not empty or code is None:
        return frozenset()
    stored = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    registered = set(code.co_consts) if "register_buffer" in code.co_names else set()
    return frozenset(empty & (stored | registered))
