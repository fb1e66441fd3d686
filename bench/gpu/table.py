"""All rows of the GPU table, in its order."""

from __future__ import annotations

from bench.gpu import operators, scoring, whole

CASES = (*operators.CASES, *scoring.CASES, *whole.CASES)
