"""The ridge of least-squares fits, and how backward elimination is cut into blocks."""

from __future__ import annotations

import torch

RIDGE = 1e-4  # of the mean variance; keeps nearly dependent units from large, opposite weights
ROUNDING = 1e-5  # of what a unit gives: what its cost may be off by. Fits make more of the rounding of float32 sums

FAST = 8192  # positions of a view; from there on matrices are of float32 once they are inverted
FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})  # capabilities; others have 1/32 of float32's rate
SMALL = 640  # positions up to which the compiled extension does all in one call: calls of products weigh more there
PANEL = 64  # positions that go before the matrices are updated: products of that depth run at full speed
GONE = 1 / 8  # of a matrix's positions; as many have gone when it is squeezed


def fast_pays(positions: int, device: torch.device) -> bool:
    """Whether products in float32 are worth what they round: in wide matrices, and where float64 is slow."""
    slow = device.type == "cuda" and torch.cuda.get_device_capability(device) not in FAST_FLOAT64
    return slow or positions >= FAST
