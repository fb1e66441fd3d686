"""What a command prints: results on standard output, all else on standard error, and what happens when nobody reads."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, RenderableType

import fairkern as fk


class Unread(Exception):
    """Whoever read what we print has gone (`fairkern … | head -1`)."""


@dataclass(frozen=True)
class Outcome:
    """What a command has done. `facts`: for `--json`, one object. `shown`: its result, for people, on standard output.
    `said`: lines on what was done, on standard error. `code`: what the command exits with."""

    facts: Mapping[str, Any]
    shown: str = ""
    said: tuple[str, ...] = field(default=())
    code: int = 0


def printed(outcome: Outcome, arguments: argparse.Namespace) -> int:
    """Print it as was asked for, by the process that speaks; the exit code."""
    if getattr(arguments, "team", None) is None or arguments.team.first:
        if arguments.json:
            out(json.dumps({"command": arguments.command, **outcome.facts}, indent=1, default=_plain))
        elif outcome.shown:
            out(outcome.shown)
        if not arguments.quiet:
            for line in outcome.said:
                err(line)
    return outcome.code


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


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays and their numbers as lists and numbers, paths and all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def rendered(table: RenderableType) -> str:
    """A table as it looks where it goes: as wide as the terminal, or 100 columns of plain text."""
    console = Console(highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def lines(every: float = 30.0) -> Callable[[int, int | None, str], None]:
    """What tells how far a command is where there is no terminal: a line as a stage begins, and then every so many
    seconds, with the time that is left."""
    begun: dict[str, float] = {}
    told = 0.0

    def on_batch(done: int, total: int | None, stage: str) -> None:
        nonlocal told
        now = time.monotonic()
        if stage not in begun:
            begun[stage] = told = now
            err(f"{stage} …")
        elif now - told >= every and done:
            told = now
            left = f" of {total}, {(now - begun[stage]) * (total - done) / done:.0f} s left" if total else ""
            err(f"{stage}: {done}{left}")

    return on_batch
