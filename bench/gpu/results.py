"""`bench/results/gpu.json`: written anew after every row, so that a run that is cut short leaves what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton

from bench.gpu.cases import Bench
from bench.provenance import provenance, write_results
from fairkern.ops import backends, describe


class Results:
    """Rows in the order in which they came."""

    def __init__(self, path: Path, commit: str | None = None) -> None:
        self.path = path
        self._commit = commit
        self._rows: list[Mapping[str, Any]] = []
        self._tests: Mapping[str, int] = {}

    def add(self, row: Mapping[str, Any], bench: Bench, tests: Mapping[str, int]) -> None:
        """`tests`: how many have passed and failed before."""
        self._rows.append(row)
        self._tests = self._tests or dict(tests)
        write_results(
            self.path,
            source=provenance(self._commit),
            numpy=np.__version__,
            triton=triton.__version__,
            cuda_extension=describe()["cuda_extension"],
            machine=bench.machine.facts(),
            backends=backends(bench.machine.device),
            copy=bench.copy,
            tests_before=self._tests,
            rows=self._rows,
        )
