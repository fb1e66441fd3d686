"""Rows → areas and averages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.quality.catalogue import ADDS_UP
from bench.quality.methods import DEFAULT, METHODS
from bench.quality.rows import Row
from bench.quality.tasks.task import retained

LEAST = 0.05  # of the parameters that can be cut: where the area begins
Recipe = tuple[str, str]  # method, compensation


def quality(row: Row) -> float:
    """Share of the measure that is left."""
    return retained(row.metric, row.before, row.after)


def area(rows: Sequence[Row]) -> float:
    """Mean quality over kept shares from LEAST to 1, linear between the measured ones; the uncut net has quality 1.

    Shares are those of the parameters that can be cut, as they came out. Below the smallest the last value holds.
    """
    shares = [1.0, *(row.kept_of_cuttable for row in rows)]
    values = [1.0, *(quality(row) for row in rows)]
    order = np.argsort(shares, kind="stable")
    places = np.linspace(LEAST, 1.0, 951)
    return float(np.interp(places, np.array(shares)[order], np.array(values)[order]).mean())


def with_default(rows: Iterable[Row]) -> list[Row]:
    """The rows, and under its own name those of the default: its plans are those of the residual per parameter on nets
    whose costs add up, and those of the residual elsewhere."""
    plain, priced = METHODS[0].name, METHODS[1].name
    found = list(rows)
    own = [row for row in found if row.method == (priced if row.model in ADDS_UP else plain)]
    return [*found, *(replace(row, method=DEFAULT.name) for row in own)]


@dataclass(frozen=True)
class Average:
    """Over models, of the mean over seeds; `spread` is the standard deviation over seeds of the average over models."""

    mean: float
    spread: float | None  # None with one seed


class Summary:
    """Areas by model, recipe and seed; one model's rows all have the same budgets."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        grouped: dict[tuple[str, Recipe, int], list[Row]] = defaultdict(list)
        for row in self.rows:
            grouped[row.model, (row.method, row.compensation), row.seed].append(row)
        self.areas: dict[tuple[str, Recipe], dict[int, float]] = defaultdict(dict)
        for (model, recipe, seed), found in grouped.items():
            self.areas[model, recipe][seed] = area(found)
        self.models = list(dict.fromkeys(row.model for row in self.rows))

    def has(self, recipe: Recipe) -> list[str]:
        """Models that were cut this way."""
        return [model for model in self.models if (model, recipe) in self.areas]

    def of(self, model: str, recipe: Recipe) -> float:
        return float(np.mean(list(self.areas[model, recipe].values())))

    def average(self, recipe: Recipe, models: Sequence[str]) -> Average:
        """Over these models, all of which were cut this way."""
        mean = float(np.mean([self.of(model, recipe) for model in models]))
        seeds = set.intersection(*(set(self.areas[model, recipe]) for model in models))
        per_seed = [np.mean([self.areas[model, recipe][seed] for model in models]) for seed in seeds]
        return Average(mean, float(np.std(per_seed, ddof=1)) if len(seeds) > 1 else None)

    def at(self, model: str, recipe: Recipe, keep: float, value: Callable[[Row], float] = quality) -> float:
        """The mean over seeds of `value` at a budget that was asked for."""
        found = [
            value(r) for r in self.rows
            if r.model == model and (r.method, r.compensation) == recipe and r.keep == keep
        ]  # fmt: skip
        return float(np.mean(found)) if found else float("nan")
