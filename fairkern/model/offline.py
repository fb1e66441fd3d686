"""Nothing is fetched while a model is built."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from fairkern.errors import InputError
from fairkern.interrupts import unbroken

_HERE = threading.local()
_ONE = threading.Lock()
_entered = 0
_connect: Any = None  # that of the class itself, if it has one
_getaddrinfo: Any = socket.getaddrinfo


@contextlib.contextmanager
@unbroken
def offline(what: str) -> Iterator[None]:
    """Within, a connection that this thread opens is an InputError, which begins with `what`; others open theirs.

    Python's own sockets are watched, by which every library that fetches weights asks for them.
    """
    before = getattr(_HERE, "what", None)
    _watch()
    _HERE.what = what
    try:
        yield
    finally:
        _HERE.what = before
        _unwatch()


def _watch() -> None:
    global _entered, _connect, _getaddrinfo
    watched: Any = socket
    with _ONE:
        if not _entered:
            _connect, _getaddrinfo = watched.socket.__dict__.get("connect"), watched.getaddrinfo
            watched.socket.connect, watched.getaddrinfo = _watched_connect, _watched_getaddrinfo
        _entered += 1


def _unwatch() -> None:
    global _entered
    watched: Any = socket
    with _ONE:
        _entered -= 1
        if not _entered:
            watched.getaddrinfo = _getaddrinfo
            if _connect is None:
                del watched.socket.connect
            else:
                watched.socket.connect = _connect


def _refuse() -> None:
    what = getattr(_HERE, "what", None)
    if what is not None:
        raise InputError(f"{what} asked the network for something: nothing is fetched to build a model")


def _watched_connect(self: Any, *args: Any) -> Any:
    _refuse()
    return super(socket.socket, self).connect(*args) if _connect is None else _connect(self, *args)


def _watched_getaddrinfo(*args: Any, **kwargs: Any) -> Any:
    _refuse()
    return _getaddrinfo(*args, **kwargs)
