"""Buffers that a forward pass fills for itself (a position bias, kept for the next call): no part of the model."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterable, Iterator
from types import CodeType
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
    """Buffers that a class's constructors register as None, and that its `forward` registers or sets, also in methods
    that it calls."""
    empty = set()
    for code in (getattr(made.__dict__.get("__init__"), "__code__", None) for made in kind.__mro__):
        steps = list(dis.get_instructions(code)) if code is not None else []
        for i, step in enumerate(steps):
            if step.argval == "register_buffer":
                given = [s.argval for s in steps[i + 1 : i + 4] if s.opname.startswith("LOAD_CONST")]
                if len(given) > 1 and type(given[0]) is str and given[1] is None:
                    empty.add(given[0])
    codes = _run_by(kind, "forward") if empty else []
    stored = {step.argval for code in codes for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    registered = {const for code in codes if "register_buffer" in code.co_names for const in code.co_consts}
    return frozenset(empty & (stored | registered))


def _run_by(kind: Any, method: str) -> list[CodeType]:
    """The code of a method, and of those of the class that it names, and those that these name."""
    found: dict[str, CodeType] = {}
    names = [method]
    while names:
        name = names.pop()
        code = getattr(getattr(kind, name, None), "__code__", None)
        if name not in found and code is not None and getattr(nn.Module, name, None) is not getattr(kind, name):
            found[name] = code
            names += code.co_names
    return list(found.values())
