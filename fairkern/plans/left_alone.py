"""Units that a plan leaves alone, and why: kinds (channels, heads, experts) of which none goes; what has no score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fairkern.options import several
from fairkern.plans.serving import plural
from fairkern.types import IndexArray, UnitMap


def held_kinds(units: UnitMap) -> dict[str, str]:
    """Per kind of unit that the model has, and of which none can be cut: in which modules, and why they stay."""
    free = {units.groups[g].kind for g in units.prunable}
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, name, reason in [
        *((group.kind, group.name, str(group.frozen)) for group in units.groups),
        *((kept.kind, kept.module or "the model", kept.reason) for kept in units.kept),
    ]:
        if kind not in free:
            found.setdefault(kind, []).append((name, reason))
    return {kind: _said(stays) for kind, stays in found.items()}


def unscored(units: UnitMap) -> list[str]:
    """A line on the groups that could be cut and that no sample scores, if there are any."""
    names = [units.groups[g].name for g in sorted({*units.prunable} - {*units.scored})]
    why = "no sample scores it, and plans that go by what was measured leave it alone"
    return [f"no input changes what is in {several(names)}: {why}"] if names else []


def left_alone(
    units: UnitMap, removed: Sequence[IndexArray], stays: Mapping[int, str], asked: Collection[str] | None = None
) -> list[str]:
    """A line for every kind of unit that the model has and that loses nothing; none where nothing goes at all.

    Then a line for every reason for which a constraint of the plan keeps groups whole.

    `removed`: per group of the map the units that go. `stays`: groups that a constraint keeps, by index, and why.
    `asked`: the kinds of which units were to go, where others were not meant to; None: any.
    """
    gone = {group.kind for group, taken in zip(units.groups, removed, strict=True) if taken.size}
    free: dict[str, list[str]] = {}
    for g in units.prunable:
        if g not in stays:
            free.setdefault(units.groups[g].kind, []).append(units.groups[g].name)
    spared = {
        kind: f"the plan spared those of {several(names)}, which could be cut"
        for kind, names in free.items()
        if kind not in gone
    }
    whole = {**held_kinds(units), **spared} if gone else {}
    held: dict[tuple[str, str], list[str]] = {}
    for g, why in stays.items():
        held.setdefault((units.groups[g].kind, why), []).append(units.groups[g].name)
    return [
        *(f"no {kind} was cut: {why}" for kind, why in whole.items() if asked is None or kind in asked),
        *(f"{plural(kind)} of {several(names)} stay: {why}" for (kind, why), names in held.items()),
    ]


def _said(stays: Sequence[tuple[str, str]]) -> str:
    reasons = Counter(re.sub(rf" in {re.escape(name)}(?![\w.])", "", reason) for name, reason in stays)
    (first, _), *others = reasons.most_common()
    further = (
        f" (and for {len(others)} further reasons)" if len(others) > 1 else " (and for 1 further reason)" * len(others)
    )
    return f"those of {several([name for name, _ in stays])} stay: {first}{further}"
