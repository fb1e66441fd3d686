"""Mutants that no test can tell from the code, and why. They count neither as killed nor as survivors."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
