"""ATen operator → what it does to axis positions. One file a family; `RULES` is the whole table.

A rule takes a `Call` and returns the track of each tensor output (None: a fresh constant). It never guesses:
what it does not understand it freezes, with a reason.
"""

from __future__ import annotations

from fairkern.axes.rules import contraction, elementwise, indexing, normalise, reduce, scatter, transforms, views
from fairkern.axes.rules._call import Call, Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **views.RULES,
    **scatter.RULES,
    **contraction.RULES,
    **normalise.RULES,
    **reduce.RULES,
    **indexing.RULES,
    **transforms.RULES,
}

__all__ = ["RULES", "Call", "Rule"]
