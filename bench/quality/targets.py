"""What the default is meant to reach, and by how much it does or does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.quality.rows import Row
from bench.quality.summary import Recipe, Summary, quality
from bench.quality.tasks.task import LARGER_IS_BETTER


@dataclass(frozen=True)
class Target:
    """At `keep` of the parameters that can be cut, `quality` is left: of accuracy, of cosine; 1/1.05 of perplexity."""

    models: tuple[str, ...]
    says: str
    keep: float
    least: float


CNNS = tuple(f"{net}-digits" for net in ("vgg", "resnet", "densenet", "mobilenet", "convnext"))
TARGETS = (
    Target(CNNS, "CNNs on digits keep 99 % of their accuracy", 0.5, 0.99),
    Target(CNNS, "CNNs on digits keep 98 % of their accuracy", 0.35, 0.98),
    Target(CNNS, "CNNs on digits keep 95 % of their accuracy", 0.2, 0.95),
    Target(("vit-digits",), "the ViT keeps 97 % of its accuracy", 0.5, 0.97),
    Target(("lm-text", "moe-text"), "perplexity grows by at most 5 %", 0.7, 1 / 1.05),
    Target(("lm-text", "moe-text"), "perplexity grows by at most 15 %", 0.5, 1 / 1.15),
    Target(("minilm-sentences",), "MiniLM keeps a mean cosine of 0.97", 0.75, 0.97),
)
COLUMNS = {"least_squares": "least squares", "sequential": "sequential", "joint": "joint"}
AHEAD = 0.005  # of accuracy: differences below are called even


def budgets(model: str) -> set[float]:
    """Shares at which a target is said for this model."""
    return {target.keep for target in TARGETS if model in target.models}


def table(summary: Summary, method: str, columns: Mapping[str, str] = COLUMNS) -> list[str]:
    """Markdown lines: a row per target and model that was run, a column per compensation, by its heading."""
    lines = [f"| target | kept | model | {' | '.join(columns.values())} |", "|---" * (3 + len(columns)) + "|"]
    waiting = []
    for target in TARGETS:
        for model in target.models:
            cells = [_reached(summary, target, model, (method, c)) for c in columns]
            if set(cells) == {"–"}:
                waiting.append(model)
            else:
                lines.append(f"| {target.says} | {target.keep:.0%} | {model} | {' | '.join(cells)} |")
    return [*lines, *(["", f"Not run: {', '.join(dict.fromkeys(waiting))}."] if waiting else [])]


def _reached(summary: Summary, target: Target, model: str, recipe: Recipe) -> str:
    if model not in summary.has(recipe):
        return "–"
    found = summary.at(model, recipe, target.keep)
    shown = f"+{1 / found - 1:.2%}" if _grows(summary, model) else f"{found:.2%}"
    return (
        f"{shown}, met" if found >= target.least else f"{shown}, **missed** by {_missed(summary, model, target, found)}"
    )


def _grows(summary: Summary, model: str) -> bool:
    metric = next(row.metric for row in summary.rows if row.model == model)
    return not LARGER_IS_BETTER[metric]


def _missed(summary: Summary, model: str, target: Target, found: float) -> str:
    if _grows(summary, model):
        return f"{100 * (1 / found - 1 / target.least):.2f} points"
    return f"{100 * (target.least - found):.2f} points"


def ahead(summary: Summary, ours: Recipe, other: Recipe, models: Sequence[str]) -> tuple[int, int, list[str]]:
    """Cells (model, budget) at which `ours` is better or even, of how many, and the names of those where it is not."""
    behind, cells = [], 0
    budgets = sorted({row.keep for row in summary.rows}, reverse=True)
    for model in models:
        for keep in budgets:
            a, b = (_cell(summary.rows, model, recipe, keep) for recipe in (ours, other))
            if a is None or b is None:
                continue
            cells += 1
            if a < b - AHEAD:
                behind.append(f"{model} at {keep:.0%} ({a:.3f} against {b:.3f})")
    return cells - len(behind), cells, behind


def _cell(rows: Sequence[Row], model: str, recipe: Recipe, keep: float) -> float | None:
    found = [quality(r) for r in rows if (r.model, (r.method, r.compensation), r.keep) == (model, recipe, keep)]
    return sum(found) / len(found) if found else None
