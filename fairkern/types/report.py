"""What a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """What a run did, ready for a table, JSON or a picture.

    `before` and `after` map measures (`params`, `flops`, `latency_ms`, `accuracy`) to numbers; `groups` has a
    row per group; `stages` maps a stage to its seconds; `choices` records what was asked for and chosen.
    `healed`: measures of the cut model once it was healed; empty where it was not.

    `timing`: how `latency_ms` came about. `before` and `after` have milliseconds by percentile (`p20`, `p50`, `p80`),
    `speedup`, of models that took turns, how many times as fast the second was by percentile of the pairs; then
    `passes`, `threads`, `device`, the `inputs` ("2x3x32x32 float32"), and `steady`: whether the 80th percentile of
    either is at most `bound` times its 20th. `curve`: a row per budget that was tried, with `budget` (the share that
    was asked for), `by` ("keep_params"), `method`, `seed`, `params`, `flops` and what was measured. `environment`:
    processor, cores, threads, platform, devices and seeds. All three are empty where nobody took them.
    """

    title: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    groups: tuple[Mapping[str, Any], ...]
    stages: Mapping[str, float]
    choices: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    healed: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
