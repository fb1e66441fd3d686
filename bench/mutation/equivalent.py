"""Mutants that no test can tell from the code, and why. They count neither as killed nor as survivors.

Only those whose name is that of no other mutant: a name is a function, what stands there and what takes its place.
"""

from __future__ import annotations

EQUIVALENT = {
    "fairkern/ops/gram/reference.py::: 128 → 129": "how many rows are computed at a time changes no value",
}
