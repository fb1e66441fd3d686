"""What a command prints: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType

from fairkern.cli.streams import err, out


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


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays and their numbers as lists and numbers, paths and all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def rendered(table: RenderableType) -> str:
    """A table as it looks where it goes: as wide as the terminal, or 100 columns of plain text."""
    made = io.StringIO()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=made, highlight=False, width=None if terminal else 100, force_terminal=terminal or None)
    console.print(table)
    return made.getvalue()


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
