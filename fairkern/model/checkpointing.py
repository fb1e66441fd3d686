"""Gradient checkpointing: left out where a pass is listened to, and code of the kind that cannot be left out."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch.utils import checkpoint

_lock = threading.Lock()
_inside: set[object] = set()  # who is, in whatever thread
_THEIRS = checkpoint.CheckpointFunction, checkpoint._checkpoint_hook


class _Kept:
    """In the place of torch's `CheckpointFunction`: what it is given runs once, and is not run again."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


@contextlib.contextmanager
def kept_instead() -> Iterator[None]:
    """Inside, `torch.utils.checkpoint` keeps what it would compute again in the backward pass, in both variants.

    Hooks hear everything once then, and gradients come to what they heard. The reentrant variant runs without gradients
    first, and passes none on where no input asks for any; the other compares what is saved in both runs. Of the whole
    process, as long as any thread is inside.
    """
    me = object()
    try:
        with _lock:
            _inside.add(me)
            _put(_Kept, contextlib.nullcontext)
        yield
    finally:
        with _lock:
            _inside.discard(me)
            if not _inside:
                _put(*_THEIRS)


def _put(function: Any, hook: Any) -> None:
    checkpoint.CheckpointFunction, checkpoint._checkpoint_hook = function, hook  # type: ignore[misc]


def functions() -> dict[CodeType, str]:
    """The forward passes of every `autograd.Function` that there is now, by their code: their names."""
    return {code: kind.__name__ for kind in _kinds(torch.autograd.Function) if (code := _code(kind)) is not None}


def running_function(names: Mapping[CodeType, str]) -> str | None:
    """The `autograd.Function` whose forward pass is under way, by its name; None where there is none. `names`: those of
    all `functions()`.

    It runs without gradients whatever it holds, and computes them by its own code: no hook hears them.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code in names:
            return names[frame.f_code]
    return None


def _kinds(kind: Any) -> Iterator[Any]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _code(kind: Any) -> CodeType | None:
    return getattr(inspect.unwrap(kind.forward), "__code__", None)
