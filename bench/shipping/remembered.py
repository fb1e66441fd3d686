"""`python -m bench.shipping.remembered FILE prune --hf …`: the command line, and beside it what its model computes.

The model that the command has in memory answers the same questions as the folder that it writes, before it is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

import fairkern.hf.run as run
from bench.shipping.asked import answers
from fairkern.cli import main


def remembered(file: str, arguments: Sequence[str]) -> int:
    write = run.write

    def first_asked(small: Any, *rest: Any) -> None:
        torch.save(answers(small), file)
        write(small, *rest)

    with mock.patch.object(run, "write", first_asked):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(remembered(sys.argv[1], sys.argv[2:]))
