"""One row: what was tried how often, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = 5  # examples of faults that a row keeps


@dataclass(frozen=True)
class Row:
    """`outcomes`: how often each came out. Those in `faults` must not be there: a row that has one is not right."""

    part: str
    case: str
    count: int = 0
    seed: int | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    faults: Sequence[str] = ()
    examples: Sequence[str] = ()  # of faults: what was tried (to be tried again by its number) and what came of it
    measured: Mapping[str, Any] = field(default_factory=dict)
    not_run: str = ""  # why it was not
    seconds: float = 0.0
    commit: str | None = None

    @property
    def wrong(self) -> int:
        return sum(self.outcomes.get(name, 0) for name in self.faults)


class Tally:
    """Outcomes as they come."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        self.outcomes: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, outcome: str, example: str = "") -> None:
        self.outcomes[outcome] += 1
        if outcome in self.faults and len(self.examples) < SHOWN:
            self.examples.append(f"{outcome}: {example}")

    def row(self, part: str, case: str, **more: Any) -> Row:
        return Row(
            part,
            case,
            count=sum(self.outcomes.values()),
            outcomes=dict(sorted(self.outcomes.items())),
            faults=self.faults,
            examples=tuple(self.examples),
            **more,
        )
