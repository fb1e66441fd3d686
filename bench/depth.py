"""`python -m bench.depth`: what nets keep at three quarters of their time for one sample, with depth and without."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fairkern as fk
from bench._compare import Timing, in_turn
from bench.provenance import ROOT, write_results
from bench.quality.nets.convolutional import Residual
from bench.quality.nets.transformers import LanguageModel
from bench.quality.tasks.digits import digits
from bench.quality.tasks.task import Task, retained
from bench.quality.tasks.text import ALPHABET, text
from bench.quality.train import Schedule, trained

RESULTS = ROOT / "bench" / "results" / "depth.json"
PICTURE = ROOT / "docs" / "pictures" / "depth.png"
SEEDS = (0, 1, 2)  # of each net's training
SHARE, WITHIN = 0.75, 0.02  # of the time of the uncut net; by how much more is as good
LOOKS = 7  # plans that are cut and timed for each way


class DeepResNet(nn.Module):
    """Three stages of four residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        widths = (16, 24, 32)
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(before, width, 1 + (before < width)), *(Residual(width, width, 1) for _ in range(3)))
            for before, width in zip((16, *widths), widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Net:
    name: str
    build: Callable[[], nn.Module]
    task: Callable[[], Task]
    schedule: Schedule


NETS = (
    Net("lm of 8 blocks, text", partial(LanguageModel, len(ALPHABET), depth=8), text, Schedule(epochs=14, rate=4e-3)),
    Net("resnet of 12 blocks, digits", DeepResNet, digits, Schedule(epochs=10)),
)
WAYS = {"width": False, "depth and width": True}
MARKS = (("o", "#1f618d"), ("^", "#c0392b"))  # of the ways, in the picture


def main() -> int:
    """Each net both ways; what fits the share of the time by the clock is refitted layer after layer and judged."""
    torch.set_num_threads(1)
    rows = []
    for net in NETS:
        task = net.task()
        for seed in SEEDS:
            model = trained(net.name.replace(" ", "-").replace(",", ""), net.build, task, net.schedule, seed=seed)
            before = task.measure(model)
            for way, depth in WAYS.items():
                own = {"net": net.name, "seed": seed, "way": way, "metric": task.metric, "before": before}
                row = {**own, **cut(model, task, depth)}
                row["retained"] = retained(task.metric, before, row["after"])
                rows.append(row)
                print(
                    f"{net.name}, seed {seed}, {way}: {task.metric} {before:.3f} → {row['after']:.3f} at "
                    f"{row['share']:.1%} of the time, {row['params']:.1%} of the parameters; {row['branches']}",
                    flush=True,
                )
    write_results(RESULTS, share=SHARE, rows=rows)
    draw(rows)
    return 0


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """A PNG, a panel a net: what is left of its measure over the share of its time, a point a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["net"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.2), dpi=75, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for way, (marker, colour) in zip(WAYS, MARKS, strict=True):
            found = [row for row in rows if row["net"] == name and row["way"] == way]
            x, y = [100 * row["share"] for row in found], [100 * row["retained"] for row in found]
            panel.scatter(x, y, marker=marker, color=colour, label=way)
        metric = next(row["metric"] for row in rows if row["net"] == name)
        kept = "accuracy after / before" if metric == "accuracy" else "perplexity before / after"
        panel.set(title=name, xlabel="time of one sample, % of the uncut net's", ylabel=f"{kept}, %")
        panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(WAYS), frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Software": None})


def cut(model: nn.Module, task: Task, depth: bool) -> dict[str, Any]:
    """The plan with the largest budget whose net takes at most the share: budgets are halved in on it by the clock."""
    one = task.example[:1]
    units = fk.trace(model, task.example, depth=depth)
    scores = fk.score(model, task.calibration, task.loss, units=units, class_of=False, gram=True, progress=False)
    table = fk.latency_table(model, units, one)
    low, high = 0.0, 1.0
    best: tuple[float, fk.Plan, Timing, Timing] | None = None
    for look in range(LOOKS):
        keep = SHARE if not look else (low + high) / 2
        try:
            plan = scores.plan(keep_latency=keep, latency=table)
        except fk.BudgetError:
            low = keep
            continue
        share, left, whole = timed(model, fk.apply(model, plan, compensate="least_squares", scores=scores), one)
        if share <= SHARE + WITHIN:
            low = keep
            if best is None or share > best[0]:
                best = share, plan, left, whole
        else:
            high = keep
    if best is None:
        raise RuntimeError("no plan that is allowed takes so little time")
    share, plan, left, whole = best
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=task.calibration)
    share, left, whole = timed(model, small, one)
    return {
        "share": share,
        "left_s": left.as_dict(),
        "whole_s": whole.as_dict(),
        "params": plan.result["params_after"] / plan.result["params_before"],
        "branches": {g.name: g.removed.tolist() for g in plan.groups if g.kind == "branch" and g.removed.size},
        "after": task.measure(small),
    }


def timed(model: nn.Module, small: nn.Module, one: Tensor) -> tuple[float, Timing, Timing]:
    """One sample in turn: the share of the time that is left (the median of three), and both times.

    By 20th percentiles: what other processes take is in the upper ones.
    """
    with torch.inference_mode():
        taken = [in_turn([lambda: small(one), lambda: model(one)], rounds=200, warmup=5) for _ in range(3)]
    left, whole = sorted(taken, key=lambda pair: pair[0].p20 / pair[1].p20)[1]
    return left.p20 / whole.p20, left, whole


if __name__ == "__main__":
    sys.exit(main())
