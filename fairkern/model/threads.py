"""Hooks on a model that somebody else may call meanwhile, in a thread of his own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def of_this_thread(hook: Callable[P, T]) -> Callable[P, T | None]:
    """The hook, for calls of the thread that asks for it; for those of others it does nothing."""
    here = threading.get_ident()

    @functools.wraps(hook)
    def heard(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return hook(*args, **kwargs) if threading.get_ident() == here else None

    return heard


def python_thread() -> bool:
    """Whether this thread was started in Python: those of autograd, which compute checkpoints again, were not."""
    here = threading.get_ident()
    return any(t.ident == here and not isinstance(t, threading._DummyThread) for t in threading.enumerate())
