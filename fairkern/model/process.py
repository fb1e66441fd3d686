"""What a process has once, random numbers and torch's fast path for attention, and whose turn it is to change it."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import random
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairkern.interrupts import let_through, unbroken

_LOOK_UP = 0.05  # seconds after which a thread that waits lets signals through


@dataclass(frozen=True)
class _State:
    python: Any
    numpy: Any
    torch: Tensor
    cuda: dict[int, Tensor]
    fast_path: bool

    @classmethod
    def now(cls) -> _State:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        return cls(
            random.getstate(),
            np.random.get_state(),  # noqa: NPY002
            torch.get_rng_state(),
            {device: torch.cuda.get_rng_state(device) for device in devices},
            torch.backends.mha.get_fastpath_enabled(),
        )

    def put_back(self) -> None:
        with contextlib.ExitStack() as steps:  # each is taken, whatever becomes of the others
            steps.callback(random.setstate, self.python)
            steps.callback(np.random.set_state, self.numpy)
            steps.callback(torch.set_rng_state, self.torch)
            for device, state in self.cuda.items():
                steps.callback(torch.cuda.set_rng_state, state, device)
            steps.callback(torch.backends.mha.set_fastpath_enabled, self.fast_path)


@dataclass(eq=False)
class _Turn:
    """A place in the queue. `before`: what was there when the turn came, and what is put back when it ends."""

    thread: int = field(default_factory=threading.get_ident)
    come: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
    before: _State | None = None

    def wait(self) -> None:
        """A signal that comes while another thread has its turn strikes here."""
        _TURNS.append(self)
        try:
            while _TURNS[0] is not self:
                let_through()
                with contextlib.suppress(queue.Empty):
                    self.come.get(timeout=_LOOK_UP)
            self.before = _State.now()
        except BaseException:
            self._leave()
            raise

    def end(self) -> None:
        try:
            assert self.before is not None
            self.before.put_back()
        finally:
            self._leave()

    def _leave(self) -> None:
        _TURNS.remove(self)
        for following in list(_TURNS)[:1]:
            following.come.put(None)


_TURNS: deque[_Turn] = deque()  # the first one's thread may change what the process has once


@contextlib.contextmanager
@unbroken
def own_turn() -> Iterator[None]:
    """Within, this thread alone sets random states, draws, and switches torch's fast path; all is put back at the end.

    Other threads that want to wait, so that what they compute does not depend on what is done here. May be nested.
    """
    if _is_ours():
        before = _State.now()
        try:
            yield
        finally:
            if _is_ours():  # not where a signal came while another thread was let in
                before.put_back()
        return
    turn = _Turn()
    turn.wait()
    try:
        yield
    finally:
        if turn in _TURNS:
            turn.end()


def seed_torch(seed: int) -> None:
    """Seeds the generators of the CPU and of all devices in use.

    `torch.manual_seed` also notes the seed, and the call stack in words (a millisecond), for kinds of devices that
    nobody has used yet: they begin with it when somebody does, long after our seed is no longer there.
    """
    seed %= 2**63
    torch.default_generator.manual_seed(seed)
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if hasattr(kind, "manual_seed_all") and kind.is_initialized():  # mtia in torch 2.9 has none
            kind.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within, every generator of the process begins with this seed; what was there is put back."""
    with own_turn():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        seed_torch(seed)
        yield


def let_others_in() -> None:
    """Between two batches: threads that wait have a turn, and find what was there before ours."""
    if len(_TURNS) > 1 and _is_ours():
        with _others_in(_TURNS[0]):
            pass


@contextlib.contextmanager
def _others_in(turn: _Turn) -> Iterator[None]:
    ours = _State.now()
    turn.end()
    try:
        yield
    finally:
        turn.wait()
        ours.put_back()


def _is_ours() -> bool:
    return bool(_TURNS) and _TURNS[0].thread == threading.get_ident()


def _alone() -> None:
    """In a process that was forked, the threads that wait or had a turn are not there."""
    for turn in [turn for turn in _TURNS if turn.thread != threading.get_ident()]:
        _TURNS.remove(turn)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone)


@contextlib.contextmanager
@unbroken
def only_new_is_collected() -> Iterator[None]:
    """Within, Python's collector of cycles looks at objects that are made from here on.

    What makes many of them, and keeps them for a while, has it walk through all that the process holds time and again:
    with torch and a large model a quarter of a second each. Where somebody else has frozen objects nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
