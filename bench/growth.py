"""`python -m bench.growth`: how the operators' time grows; bench/results/growth.json, docs/pictures/growth.png.

Each law is written down with its sizes before anything is measured: what has to be done, counted. The slope of the
times on log axes is held against that of the counts at the same sizes. One thread, its own clock, the least of some
calls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.provenance import ROOT, write_results
from fairkern import ops
from fairkern.ops.gram.packed import Packed

RESULTS = ROOT / "bench" / "results" / "growth.json"
PICTURE = ROOT / "docs" / "pictures" / "growth.png"
TOLERANCE = 0.15  # of a slope
UNITS, SAMPLES, FEW = 512, 32, 16  # of the laws in which these stay: units, samples per class, classes
COLUMNS = ("tab:blue", "tab:orange", "tab:green")

Call = Callable[[], object]


@dataclass(frozen=True)
class Law:
    """What grows over what: `work` counts it for a size, `made` makes a call of that size."""

    name: str
    over: str
    law: str
    sizes: tuple[int, ...]
    work: Callable[[int], float]
    made: Callable[[int], Call]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def distances(classes: int, samples: int, units: int) -> Call:
    x, labels = random(classes * samples, units), torch.arange(classes).repeat(samples)
    return lambda: ops.class_wasserstein(x, labels)


def sums(units: int) -> Call:
    act, grad = random(32, units, 8, 8), random(32, units, 8, 8)
    return lambda: ops.taylor_sums(act, grad)


def moments(units: int) -> Call:
    x, half = random(units, 512), Packed.zeros(units, torch.device("cpu"))
    return lambda: half.add_gram(x)


def compared(classes: int) -> float:
    """Distances of every two classes, and sorts: half a comparator for every doubling of the samples, squared."""
    return SAMPLES * (classes * (classes - 1) / 2 + classes * np.log2(SAMPLES) ** 2 / 4)


def networks(samples: int) -> float:
    """Comparators of a merge exchange, and distances of every two classes."""
    return samples * FEW * (np.log2(samples) ** 2 / 4 + (FEW - 1) / 2)


LAWS = (
    Law("U, all pairs of K classes", "classes", "K² + K", (10, 30, 100, 300, 1000), compared,
        lambda n: distances(n, SAMPLES, UNITS)),
    Law("U, n samples a class, networks", "samples per class", "n log² n", (8, 32, 128, 512, 2048, 8192), networks,
        lambda n: distances(FEW, n, UNITS)),
    Law("U, n samples a class, by digits", "samples per class", "n", (12_500, 25_000, 50_000, 100_000), float,
        lambda n: distances(4, n, 16)),
    Law("U, C channels", "channels", "C", (64, 256, 1024, 4096, 16_384), float, lambda n: distances(FEW, SAMPLES, n)),
    Law("R, C channels", "channels", "C", (64, 256, 1024, 4096, 16_384), float, sums),
    Law("second moments, C channels", "channels", "C²", (256, 512, 1024, 2048, 4096), lambda n: float(n) ** 2, moments),
)  # fmt: skip


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of the line through both on log axes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def least(call: Call, seconds: float) -> float:
    """Of this thread's own time, in which others' is not, over so many seconds of calls, three at least."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < until:
        before = time.thread_time()
        call()
        taken.append(time.thread_time() - before)
    return min(taken)


def measured(law: Law, sizes: Sequence[int] | None = None, seconds: float = 0.5) -> dict[str, Any]:
    """Its row: times of all sizes, the slope, the predicted one and whether they are as near as they should be."""
    sizes = law.sizes if sizes is None else sizes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = [least(law.made(size), seconds) for size in sizes]
    finally:
        torch.set_num_threads(threads)
    found, predicted = slope(sizes, taken), slope(sizes, [law.work(size) for size in sizes])
    return {
        "case": law.name, "over": law.over, "law": law.law, "sizes": list(sizes), "seconds": taken, "slope": found,
        "predicted": predicted, "target": TOLERANCE, "met": abs(found - predicted) <= TOLERANCE,
    }  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """A panel for all that grows over the same: points measured, through their middle a line of the predicted slope."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    over = list(dict.fromkeys(row["over"] for row in rows))
    figure = Figure(figsize=(4.2 * len(over), 3.8), dpi=75, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(over), squeeze=False)[0], over, strict=True):
        for row, colour in zip([row for row in rows if row["over"] == name], COLUMNS, strict=False):
            sizes, taken = np.array(row["sizes"]), np.array(row["seconds"])
            label = f"{row['case']}\n{row['law']}: {row['predicted']:.2f}, measured {row['slope']:.2f}"
            panel.plot(sizes, taken, "o", color=colour, label=label)
            middle = np.exp(np.log(taken).mean() + row["predicted"] * (np.log(sizes) - np.log(sizes).mean()))
            panel.plot(sizes, middle, "--", color=colour)
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds, one thread")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Software": None})


def main() -> int:
    rows = []
    for law in LAWS:
        rows.append(measured(law))
        print(f"{law.name}: {rows[-1]['slope']:.2f}, predicted {rows[-1]['predicted']:.2f}", flush=True)
    write_results(RESULTS, rows=rows)
    draw(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
