"""Latency tables as JSON: measured once, read again on the same device."""

from __future__ import annotations

import os

import numpy as np

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import plain, read_json, write_json
from fairkern.types import LatencyCurve, LatencyTable


def save_latency(table: LatencyTable, path: str | os.PathLike[str]) -> None:
    """One JSON file, written atomically. Raises InputError (times that are not finite), OSError."""
    write_json(
        path,
        "latency",
        {
            "key": plain(table.key, "key"),
            "parameters": list(table.parameters),
            "shapes": {name: list(shape) for name, shape in table.shapes.items()},
            "rest": [table.rest.shares, table.rest.ms],
            "layers": {path_: [curve.shares, curve.ms] for path_, curve in table.layers.items()},
        },
    )


def load_latency(path: str | os.PathLike[str]) -> LatencyTable:
    """What `save_latency` wrote. Raises ArtefactError (truncated, foreign, newer), FileNotFoundError."""
    content = Fields(read_json(path, "latency"), path)
    key = content["key"]
    key.entries()
    return LatencyTable(
        {name: _curve(entry) for name, entry in content["layers"].entries().items()},
        _curve(content["rest"]),
        tuple(item.text() for item in content["parameters"].items()),
        content["shapes"].shapes(),
        key.value,
    )


def _curve(entry: Fields) -> LatencyCurve:
    shares, times = (np.array([item.number() for item in part.items()]) for part in entry.items(2))
    if len(shares) != len(times) or len(shares) == 0:
        entry.fail(f"{len(shares)} shares and {len(times)} times")
    return LatencyCurve(shares, times)
