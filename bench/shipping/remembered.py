"""`python -m bench.shipping.remembered OUT … -- OPTIONS`: the command line, and beside it what its model computes.

For every OUT, whose name ends in the share of parameters that stays, `fairkern prune` runs with these options. The
model that the command has in memory answers what the folder that it writes will be asked, before it is written; that is
kept beside it. Prints a line of JSON for each: exit code, what went to standard error, seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

import fairkern.hf.run as run
from bench.shipping.asked import answers
from fairkern.cli import main


def remembered(out: str, options: Sequence[str]) -> dict[str, Any]:
    write, keep = run.write, out.rpartition("-")[2]

    def first_asked(small: Any, *rest: Any, **how: Any) -> None:
        torch.save(answers(small), f"{out}.pt")
        write(small, *rest, **how)

    said, started = io.StringIO(), time.perf_counter()
    with mock.patch.object(run, "write", first_asked), contextlib.redirect_stderr(said):
        code = main(["prune", "--keep-params", keep, "-o", out, *options])
    return {"code": code, "said": said.getvalue().strip(), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    at = sys.argv.index("--")
    for name in sys.argv[1:at]:
        print(json.dumps(remembered(name, sys.argv[at + 1 :])), flush=True)
