"""`python -m bench._limited BYTES ARGUMENT …`: the `fairkern` command in so much address space beyond its imports'.

What is imported later is imported before the limit, so that it is the run's own memory that is limited. Prints a line
of JSON at the limit: the clock, and what the process had then.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Sequence

import torch
import transformers
from transformers.models.llama import modeling_llama

from bench._status import status
from fairkern import public
from fairkern.cli import main as fairkern
from fairkern.cli import run

_USED = (transformers, modeling_llama, public, run)


def main(arguments: Sequence[str]) -> int:
    _warm()
    before = status()
    if int(arguments[0]):
        limit = before["VmSize"] + int(arguments[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps({"clock": time.monotonic(), **before}), flush=True)
    return fairkern(arguments[1:])


def _warm() -> None:
    """Threads and tables of torch's own, which stay."""
    x = torch.ones(256, 256)
    (x @ x).sum().item()
    torch.linalg.cholesky(torch.eye(8, dtype=torch.float64))
    for name in ("tokenizers", "accelerate", "safetensors"):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
