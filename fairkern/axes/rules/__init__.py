"""What ATen operators do to axis positions. One file a family; each registers its rules (`registry.py`).

A rule takes a `Call` and returns the track of each tensor output (None: a fresh constant). It never guesses:
what it does not understand it freezes, with a reason.
"""

from __future__ import annotations

from fairkern.axes.rules import (
    contraction,
    elementwise,
    indexing,
    joining,
    linear_algebra,
    losses,
    normalise,
    products,
    quantise,
    reduce,
    scatter,
    transforms,
    views,
)

__all__ = [
    "contraction",
    "elementwise",
    "indexing",
    "joining",
    "linear_algebra",
    "losses",
    "normalise",
    "products",
    "quantise",
    "reduce",
    "scatter",
    "transforms",
    "views",
]
