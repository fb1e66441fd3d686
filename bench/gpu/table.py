"""All rows of the GPU table, in its order."""

from __future__ import annotations

from bench.gpu import operators, scoring

CASES = (*operators.CASES, *scoring.CASES)
