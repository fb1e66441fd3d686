"""What a run of the grid leaves: rows of a CSV file, and how the file is read and merged."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.provenance import write_whole


@dataclass(frozen=True)
class Row:
    """One cut of one net. `keep`: share asked for of the parameters that can be cut at all; `kept`: share of the whole
    model that stayed, exactly; `cuttable`: share of the whole model that can be cut."""

    model: str
    seed: int
    task: str
    method: str
    compensation: str
    keep: float
    kept: float
    cuttable: float
    metric: str
    before: float
    after: float
    seconds: float

    @property
    def kept_of_cuttable(self) -> float:
        return 1.0 - (1.0 - self.kept) / self.cuttable


def read(path: Path) -> list[Row]:
    """Rows of a file; none if it is not there."""
    if not path.exists():
        return []
    convert = {"str": str, "int": int, "float": float}
    kinds = {field.name: convert[str(field.type)] for field in fields(Row)}
    with path.open(newline="") as file:
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]


def merged(old: Sequence[Row], new: Iterable[Row], *, partly: bool = False) -> list[Row]:
    """`new`, and those of `old` of other models or seeds; sorted by model and seed. `partly`: of these models and seeds
    those of other methods and compensations stay as well."""

    def key(row: Row) -> tuple[object, ...]:
        return (row.model, row.seed, *((row.method, row.compensation) if partly else ()))

    new = list(new)
    done = {key(row) for row in new}
    return sorted([*(r for r in old if key(r) not in done), *new], key=lambda r: (r.model, r.seed))


def write(path: Path, rows: Iterable[Row]) -> None:
    """All at once, by a rename."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    write_whole(path, text.getvalue())
