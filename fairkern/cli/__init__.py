"""The `fairkern` command: thin wrappers over the public API.

What fairkern itself raises becomes one line on stderr and exit code 2; an exception of the user's own code passes
through with its traceback.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fairkern as fk
from fairkern.cli.given import named
from fairkern.cli.parser import command_line

__all__ = ["main", "named"]

USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 2 for an error that fairkern names; 130 for Ctrl-C.

    Under `torchrun` an error of one process ends all of them, with these codes.

    `demo` returns 1 where the cut model is not what the masked model is.
    """
    try:
        arguments = command_line().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, warnings.showwarning)
            return _run(arguments)
    except SystemExit as stop:  # argparse has printed why
        return int(stop.code or 0)
    except fk.FairkernError as error:
        if error.rank is None or isinstance(error, fk.RankError):  # else the process that it comes from says it
            print(f"fairkern: error: {arguments.parser.in_options(str(error))}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("fairkern: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    """The command, by all processes that `torchrun` has started, of which the first one writes and speaks."""
    with fk.ranks.launched(f"fairkern {arguments.command}") as team:
        if team.several and not arguments.shared:
            raise fk.InputError(f"fairkern {arguments.command} is done by one process: start it without torchrun")
        arguments.team = team
        if not team.first:
            arguments.quiet = True
        return int(arguments.run(arguments))


def _warn(others: Any, message: Warning | str, category: type[Warning], filename: str, *where: Any) -> None:
    """One line for what fairkern warns of, without its code; what others warn of looks as it always does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"fairkern: warning: {message}", file=sys.stderr)  # noqa: T201
    else:
        others(message, category, filename, *where)
