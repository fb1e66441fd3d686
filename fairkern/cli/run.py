"""One command from its words to its exit code: by one process, or by several of `torchrun`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fairkern as fk
from fairkern.cli.output import printed
from fairkern.cli.parser import command_line
from fairkern.cli.streams import err, out
from fairkern.cli.words import Misused

USAGE_ERROR = 2
TERMINATED = 128 + 15


class Terminated(BaseException):
    """SIGTERM, so that what is under way is put back as for Ctrl-C."""


def run(words: Sequence[str]) -> int:
    """One command, and its exit code. What interrupts it passes through, and so does `Unread`."""
    arguments = argparse.Namespace(json="--json" in words, debug="--debug" in words)
    try:
        return _run(words, arguments)
    except Misused as error:
        if fk.ranks.speaks():
            _refuse(arguments, f"{error} ({error.prog} --help)")
        return USAGE_ERROR
    except fk.FairkernError as error:
        if arguments.debug:
            err(traceback.format_exc())
        if _says(error):
            _refuse(arguments, arguments.parser.in_options(str(error)))
        return USAGE_ERROR
    except Terminated:
        err("fairkern: terminated")
        return TERMINATED


def _says(error: fk.FairkernError) -> bool:
    """Whether this of several processes tells of an error: the one that it comes from, or for one that has died, or
    been stopped by code that is not ours, the first of the others."""
    if isinstance(error, fk.RankError) and error.rank is not None:
        return fk.ranks.speaks(without=error.rank)
    return error.rank is None


def _run(words: Sequence[str], arguments: argparse.Namespace) -> int:
    """The command, by all processes that `torchrun` has started, of which the first one writes and speaks."""
    parser = command_line()
    arguments.parser = parser
    try:
        parser.parse_args(words, arguments)
    except SystemExit as stop:  # --help and --version
        out("")
        return int(stop.code or 0)
    if arguments.command is None:
        out(parser.format_help())
        return USAGE_ERROR
    with warnings.catch_warnings(), fk.ranks.launched(f"fairkern {arguments.command}") as team:
        warnings.showwarning = partial(_warn, warnings.showwarning)
        if team.several and not arguments.shared:
            raise fk.InputError(f"fairkern {arguments.command} is done by one process: start it without torchrun")
        arguments.team = team
        arguments.quiet = arguments.quiet or not team.first
        with contextlib.nullcontext() if team.several else _terminated():
            # with --json standard output is for the object: what the user's own code prints goes to the other
            with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
                outcome = arguments.run(arguments)
            return printed(outcome, arguments)


def _refuse(arguments: argparse.Namespace, message: str) -> None:
    """The one line of an error; with `--json` also as the object that stands in place of a result. Where one stream
    cannot be written the other has its part, and the code says it anyway."""
    if arguments.json:
        with contextlib.suppress(fk.InputError):
            out(json.dumps({"error": message}))
    with contextlib.suppress(fk.InputError):
        err(f"fairkern: error: {message}")


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Within, SIGTERM raises. (Of several processes torchrun ends the rest by it, in whatever they wait for.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raised(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raised)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _warn(others: Any, message: Warning | str, category: type[Warning], filename: str, *where: Any) -> None:
    """One line for what fairkern warns of, without its code; what others warn of looks as it always does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        err(f"fairkern: warning: {message}")
    else:
        others(message, category, filename, *where)
