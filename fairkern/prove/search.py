"""Which of many candidates fail: as few trials of growing sets as will tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Failed:
    """Why a set fails. `raised`: by an error; `suspects`: candidates that have to do with where that was, if any."""

    reason: str
    raised: bool = False
    suspects: frozenset[int] = frozenset()


def search(
    candidates: Sequence[int],
    fails: Callable[[Sequence[int]], Failed | None],
    passing: Sequence[int] = (),
    said: Failed | None = None,
    most: int | None = None,
) -> dict[int, Failed]:
    """The candidates that fail on top of those that pass, with what `fails(set)` said (None: the set passes).

    Grows a passing set from the front: the next failing prefix is found by galloping and bisection, and its
    last member is the culprit. Every step settles at least one candidate, whatever `fails` answers. Where the failures
    name suspects and all others pass together, it looks among the suspects only.

    `passing`: a set that is known to pass, of which no member is a candidate. `said`: what `fails` said of all
    together, where it has been asked. `most`: do not look further once as many have failed.
    """
    asked: dict[frozenset[int], Failed | None] = {}

    def failure(groups: Sequence[int]) -> Failed | None:
        key = frozenset(groups)
        if key not in asked:
            asked[key] = fails(groups)
        return asked[key]

    found = failure([*passing, *candidates]) if said is None else said
    if found is None:
        return {}
    passing, rest, doubted = list(passing), list(candidates), frozenset[int]()
    innocent: Failed | None = found
    while innocent is not None and innocent.suspects - doubted:
        doubted |= innocent.suspects
        others = [c for c in rest if c not in doubted]
        if not others or len(others) == len(rest):
            break
        innocent = failure([*passing, *others])
        if innocent is None:
            passing, rest = [*passing, *others], [c for c in rest if c in doubted]
    if not passing:
        nothing = failure(())
        if nothing is not None:
            return dict.fromkeys(candidates, replace(nothing, reason=f"with nothing removed: {nothing.reason}"))
    failed: dict[int, Failed] = {}
    known: Failed | None = found  # of passing + rest together
    step = max(1, len(rest) // 2)
    while rest:
        low, high = 0, len(rest) if known is not None else 0  # passing + rest[:low] passes, + rest[:high] fails
        while high - low != 1:
            size = (low + high) // 2 if high else min(len(rest), low + step)
            answer = failure(passing + rest[:size])
            if answer is not None:
                high, known = size, answer
            else:
                low, step = size, step * 2
                if low == len(rest):
                    return failed
        assert known is not None
        failed[rest[low]] = known
        if most is not None and len(failed) >= most:
            return failed
        passing += rest[:low]
        rest, known, step = rest[high:], None, max(1, low)
    return failed
