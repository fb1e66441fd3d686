"""Ctrl-C strikes before something is put in place or back, or after it, and never in between.

Python looks for signals at the first instruction of every function, of `__exit__` too: nothing that stands there can
keep an interrupt away, and a `with` that is left just then is never put back. So while we work, the process's handlers
are stood in for by one that looks at the frame in which it is called. Where that is inside a context manager of ours or
of torch's that is being entered or left, the signal comes again a moment later.

Only the main thread runs handlers of signals, so elsewhere nothing has to be done.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_MAY_RAISE = ("SIGALRM", "SIGBREAK", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")  # the last is put back last
_SIGNALS = [getattr(signal, name) for name in _MAY_RAISE if hasattr(signal, name)]
_PUTTING = frozenset({"__enter__", "__exit__", "enter_context", "callback", "undivided"})
# What is raised there is dropped: as objects go, and where something of a class is copied for the first time. So it is
# in every function that Python calls with a weak reference whose object has gone.
_UNHEARD = frozenset({"__del__", "remove", "_remove", "_slotnames"})
_LIBRARY = tuple(
    function.__code__.co_filename
    for function in (
        contextlib.ExitStack.__init__,
        threading.Thread.__init__,
        weakref.WeakValueDictionary.__init__,
        weakref.WeakSet.__init__,
        copyreg._slotnames,  # type: ignore[attr-defined]
    )
)
_OURS = os.path.dirname(__file__) + os.sep
_WHOSE = (*_LIBRARY, _OURS, os.path.dirname(torch.__file__) + os.sep)
_WAITED_FOR = _PUTTING | _UNHEARD
_MOMENT = 0.001  # seconds


class _Handlers:
    """Stands in for the handlers of a process. `outside`: the frame that is not ours from which we were called."""

    def __init__(self, outside: FrameType | None) -> None:
        self._outside = outside
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.within: list[interrupts_wait] = []
        self._waiting: set[int] = set()
        self._sending = threading.RLock()  # held while one that waits is sent again, so that none is sent in vain
        self._came: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put_in_place(self) -> None:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if callable(before) and not isinstance(before, _Handlers):
                self._before[number] = before
                signal.signal(number, self)

    def put_back(self) -> None:
        """What waits strikes at the end. Handlers that somebody has set since stay."""
        late = self._taken()
        for number, before in self._before.items():
            if signal.getsignal(number) is self:
                signal.signal(number, before)  # which first calls us for all that has come
        self._outside = None
        self._strike(late | self._taken())

    def let_through(self) -> None:
        """What waits strikes here."""
        self._strike(self._taken())

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._came.put(None)
        if not self.within or self._between(frame):
            with self._sending:
                self._waiting.discard(number)
            self._before[number](number, frame)
        elif number not in self._waiting:
            self._waiting.add(number)
            if len(self._waiting) == 1:
                threading.Thread(target=self._send_again, name="fairkern-interrupt", daemon=True).start()

    def _between(self, frame: FrameType | None) -> bool:
        """Whether nothing is being put in place or back in this frame, nor in those that called it."""
        while frame is not None and frame is not self._outside:
            code = frame.f_code
            if code.co_filename.startswith(_WHOSE) and (code.co_name in _WAITED_FOR or _of_what_has_gone(frame)):
                return False
            frame = frame.f_back
        return True

    def _taken(self) -> set[int]:
        with self._sending:
            waiting, self._waiting = self._waiting, set()
        self._came.put(None)
        return waiting

    def _strike(self, numbers: set[int]) -> None:
        for number in sorted(numbers, reverse=True):
            self._before[number](number, sys._getframe())

    def _send_again(self) -> None:
        """In a thread of its own: send what waits, each time once the last has come."""
        while self._waiting:
            time.sleep(_MOMENT)
            for number in tuple(self._waiting):
                while not self._came.empty():
                    self._came.get()
                with self._sending:
                    if number in self._waiting:
                        signal.raise_signal(number)
                while number in self._waiting:  # none comes where an interrupt takes the place of the one that says so
                    with contextlib.suppress(queue.Empty):
                        self._came.get(timeout=20 * _MOMENT)
                        break


class interrupts_wait:
    """Context manager: within, signals do not strike while a `with` of ours, of torch's or of contextlib is entered or
    left, nor inside `undivided`; what came then strikes right afterwards, here at the latest.

    It can be nested, and left in any order. What the main thread has entered and another one leaves (a generator that a
    pool of threads takes turns with) lets all signals through from then on, and is gone for good when the main thread
    comes here again. Cost: two microseconds, and nothing for what runs inside.
    """

    def __init__(self) -> None:
        self._handlers: _Handlers | None = None

    def __enter__(self) -> None:
        if not _main_thread():
            return
        self._handlers = _standing_in()
        if self._handlers is not None:
            self._handlers.within.append(self)
            return
        handlers = _Handlers(_outside(sys._getframe(1)))
        try:
            handlers.within.append(self)
            handlers.put_in_place()
            self._handlers = handlers
        except BaseException:
            handlers.put_back()
            raise

    def __exit__(self, *_: object) -> None:
        handlers = self._handlers
        if handlers is not None:
            try:
                if _main_thread() and handlers.within == [self]:
                    handlers.put_back()
            finally:
                handlers.within.remove(self)


def let_through() -> None:
    """Call in a loop that waits while something is put in place or back: what waits strikes here."""
    if _main_thread():
        handlers = _standing_in()
        if handlers is not None:
            handlers.let_through()


def undivided(do: Callable[[], T]) -> T:
    """`do()`, which signals wait for. To be called inside `interrupts_wait`."""
    return do()


def unbroken(make: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Between `contextmanager` and a generator: signals wait while what this makes is entered and left."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with interrupts_wait():
            yield from make(*args, **kwargs)

    return made


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _standing_in() -> _Handlers | None:
    """Those that are in place; of the main thread. Those that another thread was the last to leave are put back."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Handlers) and not handler.within:
        handler.put_back()
        return None
    return handler if isinstance(handler, _Handlers) else None


def _of_what_has_gone(frame: FrameType) -> bool:
    """Whether the function that runs here was given one thing, a weak reference to what lives no longer."""
    code = frame.f_code
    if code.co_argcount != 1 or code.co_kwonlyargcount:
        return False
    given = frame.f_locals.get(code.co_varnames[0])
    return isinstance(given, weakref.ref) and weakref.ref.__call__(given) is None


def _outside(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename.startswith((_OURS, *_LIBRARY)):
        frame = frame.f_back
    return frame
