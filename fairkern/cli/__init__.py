"""The `fairkern` command: thin wrappers over the public API.

What cannot be used of what is given becomes one line on standard error and exit code 2; an exception of the user's own
code passes through with its traceback. `fairkern --help` lists the codes.
"""

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
from fairkern.cli.given import named
from fairkern.cli.output import Unread, abandon, err, out, printed
from fairkern.cli.parser import command_line
from fairkern.cli.words import Misused

__all__ = ["main", "named"]

USAGE_ERROR = 2
INTERRUPTED = 128 + 2  # as a shell says of what a signal has ended
UNREAD = 128 + 13
TERMINATED = 128 + 15


class Terminated(BaseException):
    """SIGTERM, so that what is under way is put back as for Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, of those that `fairkern --help` lists.

    Under `torchrun` an error of one process ends all of them, with these codes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = argparse.Namespace(json="--json" in words, debug="--debug" in words)
    try:
        try:
            return _run(words, arguments)
        except Misused as error:
            if fk.ranks.speaks():
                _refuse(arguments, f"{error} ({error.prog} --help)")
            return USAGE_ERROR
        except fk.FairkernError as error:
            if arguments.debug:
                err(traceback.format_exc())
            if error.rank is None or isinstance(error, fk.RankError):  # else the process that it comes from says it
                _refuse(arguments, arguments.parser.in_options(str(error)))
            return USAGE_ERROR
        except KeyboardInterrupt:
            err("fairkern: interrupted")
            return INTERRUPTED
        except Terminated:
            err("fairkern: terminated")
            return TERMINATED
    except Unread:
        abandon()
        return UNREAD


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
    """The one line of an error; with `--json` also as the object that stands in place of a result."""
    if arguments.json:
        out(json.dumps({"error": message}))
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
