"""What a sweep found, as users hold it: rows, tables, a file and a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fairkern import options, report
from fairkern.surroundings import stage

if TYPE_CHECKING:
    from pandas import DataFrame


WHOLE = "whole model"  # in the place of a method


@dataclass(frozen=True)
class Sweep:
    """Budgets and methods that were compared, from one pass of scoring for each seed.

    `rows`: one for each method, seed and budget, in that order: `method`, `seed`, `budget` (the share that was asked
    for), `by` ("keep_params"), `params` and `flops` that are left, `latency_ms` where time was asked for, what
    `evaluate` gave by its names, and the `seconds` that it took to cut and compensate. `before`: the same of the whole
    model. `compensation`: what was folded into each cut. `stages`: seconds of all rows together, by stage.
    """

    model: str
    by: str
    rows: tuple[Mapping[str, Any], ...]
    before: Mapping[str, float]
    compensation: str
    stages: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which they were given."""
        return tuple(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def budgets(self) -> tuple[float, ...]:
        """The largest first."""
        return tuple(sorted({row["budget"] for row in self.rows}, reverse=True))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of scoring, in the order in which they were given."""
        return tuple(dict.fromkeys(row["seed"] for row in self.rows))

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what `evaluate` gave."""
        return tuple(name for name in self.before if name not in ("params", "flops", "latency_ms"))

    def __repr__(self) -> str:
        counts = ((self.methods, "method"), (self.budgets, "budget"), (self.seeds, "seed"))
        what = ", ".join(f"{len(found)} {word}{'s' * (len(found) != 1)}" for found, word in counts)
        return f"<Sweep of {self.model} by {self.by}: {what}; {', '.join(self.measures)}>"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """A table for each measure: a row per method, a column per budget; of several seeds mean ± deviation."""
        return report.render(report.curve_table(self.rows, self.before, self.measures, self._title))

    def to_pandas(self) -> DataFrame:
        """The rows as a data frame, and before those of each seed one of the whole model, as the method "whole model".

        The column `kept` is the share that was reached, of what the budgets ask for (of a tolerance: of parameters).
        Needs pandas (`fairkern[research]`); raises InputError without.
        """
        return report.frame(report.as_columns(self._all))

    @stage
    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """What `to_pandas` has, with a header, written atomically; pandas is not needed. Raises OSError.

        A text that a spreadsheet would take for a formula has an apostrophe before it.
        """
        report.save_csv(self._all, options.place("path", path))

    @stage
    def picture(self, path: str | os.PathLike[str]) -> None:
        """What the measures are over what is left, a line per method; of several seeds their range. The ending of
        `path` says which format: png, svg or pdf. Needs matplotlib (`fairkern[research]`); raises InputError, OSError.
        """
        report.save_curves(self.rows, self.before, self.measures, self._title, options.place("path", path))

    @property
    def _all(self) -> list[dict[str, Any]]:
        """The rows with the share that was reached, those of a seed behind one of the whole model."""
        cost = {"keep_flops": "flops", "keep_latency": "latency_ms"}.get(self.by, "params")
        budget = 0.0 if self.by == "tod" else 1.0
        found = []
        for seed in self.seeds:
            whole = {"method": WHOLE, "seed": seed, "budget": budget, "by": self.by, **self.before, "seconds": 0.0}
            for row in (whole, *(row for row in self.rows if row["seed"] == seed)):
                told = {name: row[name] for name in ("method", "seed", "budget", "by")}
                found.append({**told, "kept": row[cost] / self.before[cost], **row})
        return found

    @property
    def _title(self) -> str:
        words = self.compensation.replace("_", " ")
        how = "not compensated" if self.compensation == "none" else f"compensated by {words}"
        return f"{self.model}, {how}"
