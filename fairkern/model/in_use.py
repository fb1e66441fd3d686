"""Who is at work on a model: one thread may nest what it does with it, another one is refused until that is done."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.interrupts import unbroken
from fairkern.model.process import own_turn
from fairkern.model.tensors import memory_of


@dataclass(frozen=True, eq=False)
class _Use:
    """`reading`: the model is not changed, so that others may read it as well."""

    model: nn.Module
    what: str
    reading: bool
    thread: threading.Thread
    modules: list[nn.Module]

    def covers(self, model: nn.Module, reading: bool) -> bool:
        """Whether its thread need not ask again."""
        return self.model is model and self.thread is threading.current_thread() and (reading or not self.reading)

    def refuses(self, other: _Use) -> bool:
        if self.thread is other.thread or (self.reading and other.reading):
            return False
        return not self._modules().isdisjoint(other._modules()) or not self._memory().isdisjoint(other._memory())

    def _modules(self) -> set[int]:
        return set(map(id, self.modules))

    def _memory(self) -> set[Any]:
        """That of parameters and buffers: models may share some, as backbones and tied weights are."""
        held = [t for m in self.modules for d in (m._parameters, m._buffers) for t in list(d.values())]
        return {memory_of(t) or id(t) for t in held if isinstance(t, Tensor)}


_WAIT = "a model is worked on by one thread at a time: wait for it, or give every thread a copy.deepcopy of the model"
_GONE = (
    "that thread is gone (it ended within a mask, or this process was forked from the one that it runs in), so the "
    "model stays as it is half-way: leave the mask, or build the model anew"
)

_USES: list[_Use] = []  # of all threads
_ASKING = threading.Lock()


@contextlib.contextmanager
@unbroken
def in_use(model: nn.Module, what: str, *, reading: bool = False) -> Iterator[None]:
    """Within, `what` (in words: "score()") is done with `model`, by this thread alone, which may nest other things.

    Signals wait while anything inside is put in place or back (`interrupts_wait`).
    Raises InputError where another thread is at work on a model that shares modules, parameters or buffers; both may be
    `reading` at once. What others do with it by themselves, a plain call of it, is not seen here.
    """
    if any(use.covers(model, reading) for use in list(_USES)):
        yield
        return
    mine = _Use(model, what, reading, threading.current_thread(), list(model.modules()))
    with _ASKING:
        other = next((use for use in _USES if use.refuses(mine)), None)
        if other is None:
            _USES.append(mine)
    if other is not None:
        raise InputError(
            f"{what} of this {type(model).__name__} was asked for while {other.what} is under way in the thread "
            f"{other.thread.name!r} with {'it' if other.model is model else f'a {type(other.model).__name__}'}"
            f"{'' if other.model is model else ' that shares modules or tensors with it'}; "
            + (_WAIT if other.thread.is_alive() else _GONE)
        )
    try:
        yield
    finally:
        with _ASKING:
            _USES.remove(mine)


def _forked() -> None:
    """In a process that was forked, nobody is left who could give the lock back."""
    global _ASKING
    _ASKING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextlib.contextmanager
def at_work(model: nn.Module, what: str) -> Iterator[None]:
    """`in_use`, and a turn with what a process has once: for whatever runs the model."""
    with in_use(model, what), own_turn():
        yield
