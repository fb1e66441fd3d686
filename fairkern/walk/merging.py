"""Scores of parts of a unit map put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairkern.capture.keeping import KeptMoments
from fairkern.types import Scores, UnitMap

Part = tuple[Sequence[int], Scores]


def merged(units: UnitMap, parts: Sequence[Part], loss: float, keeps: Sequence[str], segments: int) -> Scores:
    """`parts`: groups of `units`, and the scores of the map that has these alone; in the order of the model.

    What scores say of how they came about is that of one pass: `loss` is the mean of a sample, `keeps` what batches put
    into the model outside of segments; seconds are added up, bytes are those of the part that took most.
    """
    names = list(dict.fromkeys(name for _, scores in parts for name in scores.signals))
    nothing = np.zeros(0)
    signals = {name: [nothing] * len(units.groups) for name in names}
    for groups, scores in parts:
        for name, values in scores.signals.items():
            for g, found in zip(groups, values, strict=True):
                signals[name][g] = found
    return Scores(
        units=units,
        signals={name: tuple(values) for name, values in signals.items()},
        means={name: mean for _, scores in parts for name, mean in scores.means.items()},
        moments=KeptMoments.joined(scores.moments for _, scores in parts),
        grids={name: grid for _, scores in parts for name, grid in scores.grids.items()},
        provenance=_provenance(units, [scores.provenance for _, scores in parts], loss, keeps, segments),
    )


def _provenance(
    units: UnitMap, parts: Sequence[Any], loss: float, outside: Sequence[str], segments: int
) -> dict[str, Any]:
    alone = {name for said in parts for name in said["no_classes"]}
    keeps = list(dict.fromkeys([*outside, *(name for said in parts for name in said.get("keeps", ()))]))
    found: dict[str, Any] = {
        **parts[0],
        "loss": loss,
        "no_classes": [group.name for group in units.groups if group.name in alone],
        "passes": max(said["passes"] for said in parts),
        "sample_bytes": max(said["sample_bytes"] for said in parts),
        "predicted_bytes": _by_key(max, [said["predicted_bytes"] for said in parts]),
        "seconds": _by_key(sum, [said["seconds"] for said in parts]),
        "segments": segments,
    }
    found.pop("keeps", None)
    return found | ({"keeps": keeps} if keeps else {})


def _by_key(add: Any, given: Sequence[Any]) -> dict[str, Any]:
    return {key: add([said[key] for said in given if key in said]) for key in {k: None for said in given for k in said}}
