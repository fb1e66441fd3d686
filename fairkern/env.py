"""The only reader of os.environ. Nothing is read at import; each function reads when it is called."""

from __future__ import annotations

import os


def triton_interpreted() -> bool:
    """Whether Triton kernels run in the interpreter (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def processes() -> int:
    """How many processes `torchrun` or another launcher has started (`WORLD_SIZE`); 1 where none says so."""
    given = os.environ.get("WORLD_SIZE", "1")
    return int(given) if given.isdecimal() and "RANK" in os.environ else 1


def rank() -> int:
    """Which of the processes this is (`RANK`); 0 where none says so."""
    given = os.environ.get("RANK", "0")
    return int(given) if given.isdecimal() else 0


def local_rank() -> int:
    """Which of the processes on this machine this is (`LOCAL_RANK`), for the device that it takes."""
    given = os.environ.get("LOCAL_RANK", "0")
    return int(given) if given.isdecimal() else 0
