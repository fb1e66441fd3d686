"""Tables as pandas frames and as files of comma-separated values."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairkern.artefacts import replacing
from fairkern.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(table: Mapping[str, Any]) -> DataFrame:
    """Columns by name. Raises InputError where pandas is missing."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            f"a data frame needs pandas, which cannot be imported ({error}): pip install 'fairkern[research]'"
        ) from error
    return pandas.DataFrame(dict(table))


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All names that any row has, in the order in which they first come; the last of the first row stays last."""
    rows = list(rows)
    found = list(dict.fromkeys(name for row in rows for name in row))
    last = next(reversed(rows[0]), None) if rows else None
    return [*(name for name in found if name != last), *([] if last is None else [last])]


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; None where a row has no such entry."""
    return {name: [row.get(name) for row in rows] for name in columns_of(rows)}


def save_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """With a header, in UTF-8, written atomically; empty where a row has no such entry. Numbers come back as they are.

    Raises OSError.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
