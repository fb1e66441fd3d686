"""The ridge of least-squares fits, and how backward elimination is cut into blocks."""

from __future__ import annotations

RIDGE = 1e-4  # of the mean variance; keeps nearly dependent units from large, opposite weights
ROUNDING = 1e-5  # of what a unit gives: what its cost may be off by. Fits make more of the rounding of float32 sums

MULTIPLY_ADDS = 1.5  # of n³: what ordering takes with matrices that are not taken as symmetric
PANEL = 64  # units that go before the matrices are updated: products of that depth run at full speed
GONE = 1 / 8  # of a matrix's positions; as many have gone when it is squeezed
