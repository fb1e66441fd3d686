"""The ridge of least-squares fits, and how many units backward elimination looks at closely at a time."""

from __future__ import annotations

RIDGE = 1e-4  # of the mean variance; keeps nearly dependent units from large, opposite weights
ROUNDING = 1e-5  # of what a unit gives: what its cost may be off by. Fits make more of the rounding of float32 sums

MULTIPLY_ADDS = 1.5  # of n³: what ordering takes with matrices that are not taken as symmetric


def panel_units(units: int) -> int:
    """Large enough that matrix products take the time, not small updates; small enough to stay near the exact order."""
    return min(units, max(16, min(128, units // 8)))
