"""Which numbers are equal but for rounding: ties, where sums were made in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TOLERANCE = 1e-6
"""What scores may differ by and be equal, relative to their size. A sum in float32, over batches of another size, comes
out different by about 1e-7 of what is summed; units that do differ, but by so little, are not worth telling apart."""


def rounding(values: Floats, sizes: Sequence[int]) -> Floats:
    """How far off scores may be: `TOLERANCE` of each, or of the median of its group if that is more; [total] → [total].

    The median, since a score can be small because large numbers cancel out; and not the largest, since one unit with
    massive activations says nothing of the others. `sizes`: of the groups, whose scores come one after another.
    """
    return _rounding(values, *_sorted(np.abs(values), sizes))


def levels(values: Floats, sizes: Sequence[int]) -> Counts:
    """`classes` within each of many groups at once, with their `rounding`; [total] → int64 [total].

    Cost: a sort.

    Example:
        >>> levels(np.array([0.3, 0.1, 0.3 + 1e-9, 5.0, 4.0]), [3, 2])
        array([1, 0, 1, 1, 0])
    """
    order, group = _sorted(values, sizes)
    off = rounding(values, sizes) if (values < 0).any() else _rounding(values, order, group)
    ascending, half = values[order], off[order] / 2  # both ends of the intervals ascend with the values
    new = (ascending - half)[1:] > (ascending + half)[:-1]
    found = np.empty(len(values), dtype=np.int64)
    number = np.cumsum(np.concatenate(([0], new | (group[1:] != group[:-1])))) if len(values) else found
    first = np.searchsorted(group, np.arange(len(sizes)))
    found[order] = number - number[first][group]
    return found


def classes(values: Floats, off: Floats) -> Counts:
    """Equal for values that rounding may have told apart, and ascending with the others; [n], [n] → int64 [n].

    Each value stands for an interval `off` wide, and intervals that overlap are chained. So classes are transitive, and
    the same for every rounding of the values unless a gap between two of them is `off` wide to within that rounding.

    Cost: a sort.

    Example:
        >>> classes(np.array([0.3, 0.1, 0.3 + 1e-9, 0.2]), np.full(4, 1e-6))
        array([2, 0, 2, 1])
    """
    order = np.argsort(values, kind="stable")
    ascending, half = values[order], off[order] / 2
    below = np.maximum.accumulate(ascending + half)  # how far up anything before reaches
    above = np.minimum.accumulate((ascending - half)[::-1])[::-1]  # how far down anything behind reaches
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.cumsum(np.concatenate(([0], above[1:] > below[:-1]))) if len(values) else 0
    return found


def _sorted(values: Floats, sizes: Sequence[int]) -> tuple[Counts, Counts]:
    """Order by group and then by value, and the group of each place."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.lexsort((values, group)), group


def _rounding(values: Floats, order: Counts, group: Counts) -> Floats:
    """`order`: by group, and then by size."""
    counts = np.bincount(group)
    middle = np.cumsum(counts) - counts + (counts - 1) // 2
    sizes = np.abs(values)
    return TOLERANCE * np.maximum(sizes, sizes[order][middle][group])
