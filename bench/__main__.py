"""`python -m bench`: what benchmarks there are. `python -m bench NAME [arguments]`: run one, which writes its files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bench.registry import ENTRIES, Entry


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *more = arguments
    if name not in ENTRIES:
        print(f"{name}: no benchmark of this name; there are {', '.join(ENTRIES)}", file=sys.stderr)
        return 2
    command = [*argv(ENTRIES[name]), *more]
    return os.execv(command[0], command)  # signals and the exit status are the benchmark's own


def argv(entry: Entry) -> list[str]:
    """The entry's command in this interpreter."""
    program, *words = entry.command.split()
    return [sys.executable, *(("-m", "pytest") if program == "pytest" else ()), *words]


def listing() -> str:
    rows = [("name", "takes", "needs", "what"), *((e.name, e.takes, e.needs, e.what) for e in ENTRIES.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([__doc__ or "", "", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
