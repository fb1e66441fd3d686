"""Latency tables as JSON: measured once, read again on the same device."""

from __future__ import annotations

import os

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import plain, read_json, write_json
from fairkern.types import LatencyTable


def save_latency(table: LatencyTable, path: str | os.PathLike[str]) -> None:
    """One JSON file, written atomically. Raises InputError (times that are not finite), OSError."""
    write_json(
        path,
        "latency",
        {
            "key": plain(table.key, "key"),
            "parameters": list(table.parameters),
            "shapes": {name: list(shape) for name, shape in table.shapes.items()},
            "whole": table.whole,
            "error": table.error,
            "rest": dict(table.rest),
            "outputs": dict(table.outputs),
            "layers": {name: dict(terms) for name, terms in table.layers.items()},
        },
    )


def load_latency(path: str | os.PathLike[str]) -> LatencyTable:
    """What `save_latency` wrote. Raises ArtefactError (truncated, foreign, newer, edited), FileNotFoundError."""
    content = Fields(read_json(path, "latency"), path)
    return LatencyTable(
        {name: _numbers(entry) for name, entry in content["layers"].entries().items()},
        _numbers(content["rest"]),
        _numbers(content["outputs"]),
        tuple(item.text() for item in content["parameters"].items()),
        content["shapes"].shapes(),
        content["whole"].number(),
        content["error"].number(),
        content["key"].mapping(),
    )


def _numbers(entry: Fields) -> dict[str, float]:
    return {name: value.number() for name, value in entry.entries().items()}
