"""Charts that keep the size of their text on any screen: lines and points in SVG that is stretched, labels in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fairkern.report.html.elements import Html, el

_LEAST_APART = 0.15  # of an axis: ticks of a log axis that are nearer are left out


@dataclass(frozen=True)
class Scale:
    """An axis: from its values to 0 … 100, its ticks, and what is written beside it (with the unit)."""

    low: float
    high: float
    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def __call__(self, value: float) -> float:
        """Where a value lies along the axis, in per cent; beyond the ends at the end."""
        low, high, value = (self._on(v) for v in (self.low, self.high, value))
        return 100 * min(1.0, max(0.0, (value - low) / (high - low)))

    def _on(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value


def linear(low: float, high: float, label: str, said: Callable[[float], str] = "{:g}".format) -> Scale:
    """A linear axis that holds both values, with four to seven round ticks; wider where `said` would not tell two of
    them apart."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    least = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(least))
    step = next(by * decade for by in (1, 2, 5, 10) if by * decade >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((i * step, said(round(i * step, 12))) for i in range(first, last + 1))
    if len({name for _, name in ticks}) < len(ticks):
        return linear(low - (high - low) / 2, high + (high - low) / 2, label, said)
    return Scale(first * step, last * step, label, ticks=ticks)


def logarithmic(values: Iterable[float], label: str, decades: int = 16) -> Scale:
    """A log axis from the least positive value to the largest, with ticks at decades, fewer where there are many.

    What is zero, or more than so many decades below the largest, is drawn at the lower end, and the label says so.
    """
    given = list(values)
    positive = [v for v in given if v > 0] or [1.0]
    high = math.ceil(math.log10(max(positive)))
    low = max(high - decades, math.floor(math.log10(min(positive))))
    high = max(high, low + 1)
    less = f"; what is less is at {_power(low)}" if min(given, default=1.0) < 10.0**low else ""
    label = f"{label} (log axis{less})"
    step = max(1, math.ceil((high - low) * _LEAST_APART))
    ticks = tuple((10.0**e, _power(e)) for e in range(low, high + 1, step))
    return Scale(10.0**low, 10.0**high, label, log=True, ticks=ticks)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """The points as a line, in the coordinates of `plot`."""
    return "M" + "L".join(f"{number(x(a))} {number(100 - y(b))}" for a, b in points)


def dots(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """The points as dots: lines of no length, whose round caps stay round where the picture is stretched."""
    return "".join(f"M{number(x(a))} {number(100 - y(b))}h0" for a, b in points)


def stroke(d: str, *children: str, class_: str) -> Html:
    return el("path", *children, d=d, class_=class_, vector_effect="non-scaling-stroke")


def plot(x: Scale, y: Scale, *marks: str | Iterable[str], name: str) -> Html:
    """A chart: the label of the y axis above, ticks to the left and below, the label of the x axis under those.

    `name` tells those who do not see it what it shows. Under it is a line in which a script repeats the title of what
    was touched.
    """
    grid = [
        *(stroke(f"M{number(x(v))} 0V100", class_="grid") for v, _ in x.ticks),
        *(stroke(f"M0 {number(100 - y(v))}H100", class_="grid") for v, _ in y.ticks),
    ]
    drawn = el("svg", grid, *marks, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=name)
    left = [el("span", said, class_="tick", style=f"top:{number(100 - y(v))}%") for v, said in y.ticks]
    below = [el("span", said, class_="tick", style=f"left:{number(x(v))}%") for v, said in x.ticks]
    widest = max((len(said) for _, said in y.ticks), default=1)
    return el(
        "figure",
        el("div", y.label, class_="ylabel"),
        el("div", left, class_="yticks", style=f"width:{widest + 1}ch"),
        el("div", drawn, class_="area"),
        el("div", below, class_="xticks"),
        el("div", x.label, class_="xlabel"),
        el("p", class_="readout", aria_live="polite"),
        class_="plot",
    )


def key(entries: Iterable[tuple[str, str | Html]]) -> Html:
    """What the colours and marks are, above a chart: (class of the mark, in words)."""
    return el("ul", [el("li", el("i", class_=mark), said) for mark, said in entries], class_="key")
