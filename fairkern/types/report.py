"""What a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """What a run did, ready for a table, JSON or a picture.

    `before` and `after` map measures (`params`, `flops`, `latency_ms`, `accuracy`) to numbers; `groups` has a
    row per group; `stages` maps a stage to its seconds; `choices` records what was chosen automatically. `healed`:
    measures of the cut model once it was healed; empty where it was not.
    """

    title: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    groups: tuple[Mapping[str, Any], ...]
    stages: Mapping[str, float]
    choices: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    healed: Mapping[str, float] = field(default_factory=dict)
