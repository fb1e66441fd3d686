"""A Report as a JSON file."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from fairkern.artefacts import read_json, write_json
from fairkern.artefacts.fields import Fields
from fairkern.types import Report

_LATER = ("healed", "timing", "curve", "environment")  # left out where empty: files of before had none of them


def save_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `report` atomically as JSON ("fairkern.report"); arrays become lists.

    Raises InputError (a value that JSON cannot hold, NaN among them; names its place), OSError (the folder
    cannot be made or written, the disk is full). Nothing half-written stays.
    """
    write_json(path, "report", report_content(report))


def report_content(report: Report) -> dict[str, Any]:
    """What a report's file says, without the header."""
    content = {field.name: getattr(report, field.name) for field in fields(Report)}
    return {name: value for name, value in content.items() if value or name not in _LATER}


def load_report(path: str | os.PathLike[str]) -> Report:
    """The report that `save_report` wrote.

    Raises ArtefactError (truncated, foreign, damaged or edited, a newer schema), FileNotFoundError.
    """
    content = Fields(read_json(path, "report"), path)

    def numbers(entry: Fields) -> dict[str, float]:
        return {name: value.number() for name, value in entry.entries().items()}

    return Report(
        title=content["title"].text(),
        before=numbers(content["before"]),
        after=numbers(content["after"]),
        groups=tuple(row.mapping() for row in content["groups"].items()),
        stages=numbers(content["stages"]),
        choices=content["choices"].mapping(),
        versions={key: entry.text() for key, entry in content["versions"].entries().items()},
        healed=numbers(content.get("healed", {})),
        timing=content.get("timing", {}).mapping(),
        curve=tuple(row.mapping() for row in content.optional_items("curve")),
        environment=content.get("environment", {}).mapping(),
    )
