"""Gradient checkpointing: left out where a pass is listened to, and code of the kind that cannot be left out."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch.utils import checkpoint

_lock = threading.Lock()
_inside = 0
_theirs: tuple[Any, Any] | None = None


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
    global _inside, _theirs
    with _lock:
        if _inside == 0:
            _theirs = checkpoint.CheckpointFunction, checkpoint._checkpoint_hook
            checkpoint.CheckpointFunction = _Kept  # type: ignore[misc,assignment]
            checkpoint._checkpoint_hook = contextlib.nullcontext  # type: ignore[misc,assignment]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _theirs is not None:
                checkpoint.CheckpointFunction, checkpoint._checkpoint_hook = _theirs  # type: ignore[misc]
                _theirs = None


def running_function() -> str | None:
    """The `autograd.Function` whose forward pass is under way, by its name; None where there is none.

    It runs without gradients whatever it holds, and computes them by its own code: no hook hears them.
    """
    names = {code: kind.__name__ for kind in _kinds(torch.autograd.Function) if (code := _code(kind)) is not None}
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code in names:
            return names[frame.f_code]
    return None


def _kinds(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _code(kind: type) -> CodeType | None:
    return getattr(inspect.unwrap(kind.forward), "__code__", None)  # type: ignore[attr-defined]
