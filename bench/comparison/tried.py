"""`python -m bench.comparison.tried TOOL`: the cells of one tool as JSON, in an environment that has it."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict

import torch

from bench.comparison.cases import CASES
from bench.comparison.cells import Cell
from bench.comparison.features import KEYS, TOOLS


def cells(tool: str, keys: Sequence[str] = KEYS) -> dict[str, Cell]:
    """Every cell of a tool. What a cell expects of the tool and does not find is an error, not an answer."""
    module = importlib.import_module(f"bench.comparison.{tool}")
    torch.manual_seed(0)
    return {key: module.structure(key) if key in CASES else getattr(module, key)() for key in keys}


def main() -> None:
    (tool,) = sys.argv[1:]
    assert tool in TOOLS
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        found = cells(tool)
    print(json.dumps({key: asdict(cell) for key, cell in found.items()}))


if __name__ == "__main__":
    main()
