"""Units to remove, per group of a map, as `build` takes them: none, a share at random, about half at random."""

from __future__ import annotations

import numpy as np

from fairkern.errors import InputError
from fairkern.types import AxisGroup, IndexArray, UnitMap

NONE: IndexArray = np.zeros(0, dtype=np.int64)


def nothing(units: UnitMap) -> list[IndexArray]:
    """No unit of any group."""
    return [NONE] * len(units.groups)


def random_removal(units: UnitMap, fraction: float, seed: int) -> list[IndexArray]:
    """Units drawn at random from every prunable group, for proofs and tests; the global generators stay untouched.

    Args:
        units: the map.
        fraction: share of each group, between 0 and 1: `floor(fraction · n)` units, but at least 1 and at most
            what the group can spare (n − 1, or less where experts are needed); so none from a group of one unit. What
            stays is a multiple where the group asks for one.
        seed: of an own NumPy generator; the same seed gives the same units.

    Returns:
        Per group of the map an ascending int64 array, `[sets, count]` where a group has several sets, empty for
        frozen groups; what `build` takes.

    Raises:
        InputError: a fraction out of range.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"fraction={fraction!r} is not a share of a group; expected a number from 0 to 1")
    generator = np.random.default_rng(seed)
    removed = []
    for group in units.groups:
        count = _sparable(group, int(fraction * group.units)) if group.frozen is None else 0
        removed.append(drawn(group, count, generator))
    return removed


def _sparable(group: AxisGroup, wanted: int) -> int:
    """About as many units as wanted, at least one step, so that what stays is enough and the multiple it has to be."""
    count = min(max(wanted, 1), group.units - group.least)
    count -= (count - group.units) % group.multiple
    least = group.units % group.multiple or group.multiple
    count = max(count, least)
    return count if group.units - count >= group.least else 0


def drawn(group: AxisGroup, count: int, generator: np.random.Generator) -> IndexArray:
    """`count` units of a group (of each of its sets) at random, ascending: int64 `[count]` or `[sets, count]`."""
    rows = [np.sort(generator.permutation(group.units)[:count]).astype(np.int64) for _ in range(group.sets)]
    return rows[0] if group.sets == 1 or not count else np.stack(rows)


def about_half(units: UnitMap, seed: int) -> list[IndexArray]:
    """Between three and five eighths of every prunable group, so that sizes seldom coincide by chance.

    Groups of one size are dealt their counts like cards, so that two coincide only once all counts have come by: two
    that have to stay equally large are told apart by that. Just half comes last, which code that checks or divides by
    a number is likeliest to bear. The first unit is always among those that go, so that what stays moves up: places at
    fixed numbers, which are still right where only the last units go, are then wrong.
    What no kernel runs on need not be a multiple. Draws from a generator of its own, as `random_removal` does.
    """
    generator = np.random.default_rng(seed)
    removed = []
    dealt: dict[tuple[int, int], list[int]] = {}
    for group in units.groups:
        if group.frozen is not None or group.units <= group.least:
            removed.append(NONE)
            continue
        counts = dealt.setdefault((group.units, group.least), [])
        if not counts:
            half, slack = group.units // 2, max(group.units // 8, 1)
            most = group.units - group.least
            wanted = range(max(half - slack, 1), min(half + slack, most) + 1) or [most]
            others = [int(n) for n in generator.permutation(wanted) if n != half]
            counts.extend([half, *others] if half in wanted else others)  # the last one is dealt first
        gone = drawn(group, counts.pop(), generator)
        gone[..., 0] = 0  # in the place of the smallest number
        removed.append(gone)
    return removed
