"""Standard output and standard error, and what happens when nobody reads them, or they cannot be written."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import fairkern as fk


class Unread(Exception):
    """Whoever read what we print has gone (`fairkern … | head -1`)."""


def out(text: str) -> None:
    """Text on standard output, at once. Raises `Unread` where it was closed, `InputError` where it cannot go there."""
    _write(sys.stdout, text, "standard output")


def err(text: str) -> None:
    """Text on standard error, at once."""
    _write(sys.stderr, text, "standard error")


def _write(stream: TextIO | None, text: str, name: str) -> None:
    if stream is None:  # closed before Python began
        return
    try:
        stream.write(text if text.endswith("\n") or not text else f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        raise Unread from None
    except OSError as error:
        abandon()
        raise fk.InputError(f"cannot write to {name}: {error.strerror or error}") from None


def abandon() -> None:
    """What could not be written goes nowhere, so that Python does not try again, and complain, when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
