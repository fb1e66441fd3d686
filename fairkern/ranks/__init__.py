"""Several processes that do one thing together: who they are, sums in a fixed order, and errors that reach all of them.

Nothing here depends on the backend of the process group. What has to be agreed on goes through the group's store, sums
through gloo connections of our own, which move bytes and add nothing: `all_reduce` adds in an order that depends on
where a value lies in the buffer, and so do the trees of NCCL.
"""

from __future__ import annotations

from fairkern.ranks.entering import RanksLike, alone, entered, launched, measured, shared, speaks, together
from fairkern.ranks.team import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "RanksLike", "alone", "entered", "launched", "measured", "shared", "speaks", "together"]
