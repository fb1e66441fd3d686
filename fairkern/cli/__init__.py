"""The `fairkern` command: thin wrappers over the public API.

What cannot be used of what is given becomes one line on standard error and exit code 2; an exception of the user's own
code passes through with its traceback. `fairkern --help` lists the codes.

What is here loads neither torch nor anything that does: that takes seconds, and is done within `main`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import fairkern as fk
from fairkern.cli.streams import Unread, abandon, err, out

__all__ = ["main"]

USAGE_ERROR = 2
INTERRUPTED = 128 + 2  # as a shell says of what a signal has ended
UNREAD = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, of those that `fairkern --help` lists.

    Under `torchrun` an error of one process ends all of them, with these codes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            if words[:1] == ["--version"]:
                out(f"fairkern {fk.__version__}")
                return 0
            from fairkern.cli.run import run

            return run(words)
        except KeyboardInterrupt:
            err("fairkern: interrupted")
            return INTERRUPTED
    except Unread:
        abandon()
        return UNREAD
    except fk.InputError as error:  # of a stream: whatever else there is `run` has said
        with contextlib.suppress(fk.InputError):
            err(f"fairkern: error: {error}")
        return USAGE_ERROR
