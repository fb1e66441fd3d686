"""The pictures of the page on the method, from the network and the digits of the quick start. Needs the extra `docs`.

Each is drawn twice, for light and dark pages, and is half a text wide: two stand side by side, and one fills a phone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import fairkern as fk

DOCS = Path(__file__).resolve().parents[1]
FOLDER = DOCS / "pictures" / "guide"
INK = {"light": "#26292e", "dark": "#d8dbe2"}
FAINT = {"light": "#c9cdd4", "dark": "#4a505c"}
BLUE, RED, GREEN, GOLD = "#4c8dd6", "#e0655b", "#3fa07a", "#d39a2c"
SINGLE = "fc1"  # one value per sample and unit, so that U is the distance of two distributions of numbers
LAYER = "conv3"
KEEP = 0.25
BUDGETS = (0.5, 0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.035)


def trained() -> dict[str, Any]:
    """The names of the quick start after its first block: `model`, `train`, `accuracy` and so on."""
    page = (DOCS / "guide" / "quickstart.md").read_text()
    names: dict[str, Any] = {"__name__": "quickstart"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    return names


class Drawn:
    """What all pictures are made of."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.model, self.accuracy = names["model"], names["accuracy"]
        self.images, self.labels = names["train"].tensors
        self.loader = list(zip(self.images.split(64), self.labels.split(64), strict=True))
        self.units = fk.trace(self.model, self.images[:1])
        loss = nn.functional.cross_entropy
        self.scores = fk.score(self.model, self.loader, loss, units=self.units, gram=True, progress=False)
        self.plan = self.scores.plan(keep_flops=KEEP)
        self.single, self.group = (
            next(g for g, group in enumerate(self.units.groups) if group.name == name) for name in (SINGLE, LAYER)
        )

    def activations(self) -> Tensor:
        """What fc2 reads, [samples, units]."""
        heard: list[Tensor] = []
        hook = self.model.fc2.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
        with torch.no_grad():
            self.model.eval()(self.images)
        hook.remove()
        return heard[0]

    def farthest(self, unit: int) -> tuple[float, tuple[int, int], list[np.ndarray]]:
        """The largest distance of a unit between two classes, which those are, and its sorted values in them."""
        values = self.activations()[:, unit].numpy()
        sorts = [np.sort(values[self.labels.numpy() == c]) for c in range(10)]
        levels = (np.arange(200) + 0.5) / 200
        table = np.array([np.quantile(s, levels) for s in sorts])
        pairs = {(a, b): float(np.abs(table[a] - table[b]).mean()) for a in range(10) for b in range(a + 1, 10)}
        best = max(pairs, key=pairs.__getitem__)
        return pairs[best], best, [sorts[best[0]], sorts[best[1]]]


def signal_of(rank: int) -> Callable[[Axes, Drawn, str], None]:
    def draw(axes: Axes, drawn: Drawn, scheme: str) -> None:
        """Two distributions, and the area between them."""
        active = np.flatnonzero(drawn.scores.signals["taylor"][drawn.single] > 0)
        u = drawn.scores.signals["wasserstein"][drawn.single][active]
        distance, classes, values = drawn.farthest(int(active[np.argsort(u)[rank]]))
        levels = np.linspace(0, 1, 400)
        curves = [np.quantile(v, levels) for v in values]
        axes.fill_betweenx(levels, *curves, color=GOLD, alpha=0.3, linewidth=0)
        for curve, colour, number in zip(curves, (BLUE, RED), classes, strict=True):
            axes.plot(curve, levels, color=colour, linewidth=2, label=f"images of a {number}")
        axes.set(xlabel="activation of the unit", ylabel="share of images below")
        axes.set_xlim(-0.3, max(6.0, *(c[-1] for c in curves)))
        axes.set_title(f"{'high' if rank < 0 else 'low'} U: the area is {distance:.2f}", pad=24)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2)

    return draw


def scatter(axes: Axes, drawn: Drawn, scheme: str) -> None:
    """U against R of a layer, and what a tolerance takes."""
    u, r = (drawn.scores.signals[name][drawn.group] for name in ("wasserstein", "taylor"))
    gone = np.zeros(len(u), dtype=bool)
    gone[_tolerant(drawn)] = True
    floor = r[r > 0].min() / 3  # where units lie that move nothing
    for chosen, colour, label in ((~gone, BLUE, "stays"), (gone, RED, "goes")):
        axes.scatter(u[chosen], np.maximum(r[chosen], floor), s=16, color=colour, alpha=0.8, linewidth=0, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="U: how differently between classes", ylabel="R: how the loss moves")
    axes.set_title(f"{LAYER}: low U goes, high R protects")
    axes.legend(loc="lower right")


def tolerance(axes: Axes, drawn: Drawn, scheme: str) -> None:
    """The ToD curve of the layer, and how far a tolerance goes along it."""
    u, r = (torch.tensor(drawn.scores.signals[name][drawn.group]) for name in ("wasserstein", "taylor"))
    curve = fk.ops.tod_curve(u, r).numpy()
    count = len(_tolerant(drawn))
    axes.plot(np.arange(1, len(curve) + 1), curve, color=BLUE, linewidth=2)
    axes.axhline(ALPHA, color=GOLD, linewidth=1.5, linestyle="--")
    axes.text(2, ALPHA + 0.02, f"tolerance {ALPHA}", color=INK[scheme], fontsize=9)
    axes.plot([count], [curve[count - 1]], "o", color=RED, markersize=7)
    axes.annotate(
        f"{count} units go",
        (count, curve[count - 1]),
        (-14, 30),
        textcoords="offset points",
        ha="right",
        color=INK[scheme],
        arrowprops={"arrowstyle": "-", "color": INK[scheme]},
    )
    axes.set(xlabel="k, units of lowest U", ylabel="share also among k highest R", ylim=(0, 1))
    axes.set_title(f"{LAYER}: how far the two contradict")


ALPHA = 0.2


def _tolerant(drawn: Drawn) -> np.ndarray:
    plan = drawn.scores.plan(tod=ALPHA)
    return next((g.removed for g in plan.groups if g.name == LAYER), np.array([], dtype=int))


def threshold(axes: Axes, drawn: Drawn, scheme: str) -> None:
    """What every unit costs, in the order of going, and the one threshold of the plan."""
    kept = {group.name: len(group.removed) for group in drawn.plan.groups}
    for g, colour in zip(range(4), (BLUE, GREEN, GOLD, RED), strict=True):
        name = drawn.units.groups[g].name
        cost = np.sort(drawn.scores.signals["residual"][g])
        place = (np.arange(len(cost)) + 1) / len(cost)
        axes.plot(place, np.maximum(cost, 1e-9), color=colour, linewidth=2, label=name)
        count = kept[name]
        axes.plot([count / len(cost)], [max(cost[count - 1], 1e-9)], "o", color=colour, markersize=6)
    axes.axhline(drawn.plan.result["tolerance"], color=INK[scheme], linewidth=1.2, linestyle="--")
    axes.set_yscale("log")
    axes.set(xlabel="share of the layer that goes", ylabel="the next unit costs (loss)", ylim=(1e-9, 1))
    axes.set_title("one threshold for all layers")
    axes.legend(loc="upper left", ncols=2)


def widths(axes: Axes, drawn: Drawn, scheme: str) -> None:
    """Of every layer what stays."""
    names = [group.name for group in drawn.plan.groups]
    before = np.array([group.units for group in drawn.plan.groups])
    after = before - [len(group.removed) for group in drawn.plan.groups]
    places = np.arange(len(names))
    axes.barh(places, before, color=FAINT[scheme], label="before")
    axes.barh(places, after, color=BLUE, height=0.5, label="after")
    for place, old, new in zip(places, before, after, strict=True):
        axes.text(old + 2, place, f"{old} → {new}", va="center", color=INK[scheme], fontsize=9)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlabel="units", xlim=(0, before.max() * 1.3))
    axes.set_title("a quarter of the operations stays")
    axes.legend(loc="upper right")


def weight(cut: bool) -> Callable[[Axes, Drawn, str], None]:
    def draw(axes: Axes, drawn: Drawn, scheme: str) -> None:
        """The norms of conv2's kernels, [out, in], and which of them go."""
        model = fk.apply(drawn.model, drawn.plan) if cut else drawn.model
        norms, before = (m.conv2.weight.detach().flatten(2).norm(dim=2).numpy() for m in (model, drawn.model))
        axes.imshow(norms.T, cmap="viridis", aspect="equal", interpolation="nearest", vmin=0, vmax=before.max())
        if not cut:
            gone = {g.name: g.removed for g in drawn.plan.groups}
            mask = np.zeros(norms.shape, dtype=bool)
            mask[gone["conv2"]] = mask[:, gone["conv1"]] = True
            shade = np.zeros((*norms.T.shape, 4))
            shade[mask.T] = (*((1, 1, 1) if scheme == "light" else (0.12, 0.13, 0.16)), 0.8)
            axes.imshow(shade, interpolation="nearest")
        axes.set(xlabel="channels of conv2", ylabel="channels of conv1", xlim=(-0.5, 63.5), ylim=(31.5, -0.5))
        axes.set_title(f"conv2.weight, {'afterwards' if cut else 'and what goes'}")
        axes.grid(False)

    return draw


def compensated(axes: Axes, drawn: Drawn, scheme: str) -> None:
    """Accuracy over budget, cut at random, by the plan, and with what went folded in."""
    ways: dict[str, Callable[[float], nn.Module]] = {
        "sequential": lambda keep: _cut(drawn, keep, compensate="sequential", loader=drawn.loader),
        "least squares": lambda keep: _cut(drawn, keep, compensate="least_squares"),
        "the bare cut": lambda keep: _cut(drawn, keep),
        "as much at random": lambda keep: fk.apply(
            drawn.model, drawn.scores.plan(keep_flops=keep, removal="random", allocation="uniform")
        ),
    }
    for (name, way), colour in zip(ways.items(), (GREEN, BLUE, GOLD, RED), strict=True):
        reached = [100 * drawn.accuracy(way(keep)) for keep in BUDGETS]
        axes.plot(BUDGETS, reached, "o-", color=colour, markersize=4, linewidth=2, label=name)
    axes.axhline(100 * drawn.accuracy(drawn.model), color=INK[scheme], linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([0.5, 0.25, 0.1, 0.05], labels=["50 %", "25 %", "10 %", "5 %"])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set(xlabel="operations that stay", ylabel="test accuracy, %", ylim=(0, 102))
    axes.set_title("one shot, without training")
    axes.legend(loc="lower left")


def _cut(drawn: Drawn, keep: float, **options: Any) -> nn.Module:
    scores = {"scores": drawn.scores} if options else {}
    return fk.apply(drawn.model, drawn.scores.plan(keep_flops=keep), **options, **scores)


PICTURES: dict[str, Callable[[Axes, Drawn, str], None]] = {
    "u_high": signal_of(-1),
    "u_low": signal_of(0),
    "scatter": scatter,
    "tolerance": tolerance,
    "threshold": threshold,
    "widths": widths,
    "weight": weight(cut=False),
    "weight_cut": weight(cut=True),
    "compensated": compensated,
}


def figures(drawn: Drawn, names: list[str]) -> Iterator[tuple[str, Figure]]:
    from matplotlib import rc_context

    for name in names:
        for scheme in ("light", "dark"):
            ink = INK[scheme]
            style = {
                "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.spines.top": False,
                "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT[scheme],
                "grid.alpha": 0.5, "legend.frameon": False, "legend.fontsize": 9,
                **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), ink),
                **dict.fromkeys(("xtick.color", "ytick.color"), ink),
                "axes.edgecolor": FAINT[scheme], "axes.facecolor": "none",
            }  # fmt: skip
            with rc_context(style):
                height = 2.3 if name.startswith("weight") else 3.1
                figure = Figure(figsize=(3.7, height), dpi=200, layout="constrained", facecolor="none")
                PICTURES[name](figure.add_subplot(), drawn, scheme)
                yield f"{name}_{scheme}.png", figure


def main(names: list[str], folder: Path = FOLDER) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for file, figure in figures(Drawn(trained()), names or list(PICTURES)):
        figure.savefig(folder / file, metadata={"Software": None})
        print(file, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
