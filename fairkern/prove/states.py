"""The states in which a model is run once it is deployed or trained on, as far as its code asks in which it is."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

State = Callable[[], contextlib.AbstractContextManager[object]]

_ASKING = frozenset({"is_grad_enabled", "is_inference_mode_enabled", "is_inference", "get_fastpath_enabled"})


def states_of(model: nn.Module) -> list[State]:
    """Without gradients, on torch's fast path where it goes; and with gradients, where a module's code asks for them.

    Torch's attention asks too. It is left out, since what takes its place asks in the same way (tests hold that).
    """
    kinds: set[Any] = {type(module) for module in model.modules() if not isinstance(module, nn.MultiheadAttention)}
    return [_deployed, _trained] if any(map(_asks, kinds)) else [_deployed]


@contextlib.contextmanager
def _deployed() -> Iterator[None]:
    with torch.no_grad(), _fast():
        yield


@contextlib.contextmanager
def _trained() -> Iterator[None]:
    with torch.enable_grad(), _fast():
        yield


@contextlib.contextmanager
def _fast() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@functools.cache
def _asks(kind: Any) -> bool:
    """Whether `forward` (not its decorators) asks, or what it names: methods, and functions defined beside it."""
    waiting: list[Any] = [kind.forward]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        function = inspect.unwrap(function) if callable(function) else function
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        names = _names(function.__code__)
        if names & _ASKING:
            return True
        beside = [function.__globals__.get(name) for name in names]
        waiting += [f for f in beside if getattr(f, "__globals__", None) is function.__globals__]
        waiting += [getattr(kind, name, None) for name in names if not hasattr(nn.Module, name)]
    return False


def _names(code: CodeType) -> set[str]:
    inner = [_names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)
