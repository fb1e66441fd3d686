"""Numbers and entries of a report as people read them, the same in a table and on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fairkern.types import Report


def quantity(value: float) -> str:
    """A count in four digits or so: `950`, `12.3 k`, `1.81 G`."""
    size = abs(value)
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= (scale if scale > 1e3 else 1e4):
            return f"{value / scale:.{2 if size < 10 * scale else 1}f} {unit}"
    return f"{value:.1f}" if size < 100 and value != int(value) else whole(round(value))


_CLOCKED = ("tokens_per_second",)  # single runs, which say little where the clock was unsteady
LABELS = {
    "params": "parameters",
    "flops": "FLOPs",
    "latency_ms": "latency",
    "latency_predicted_ms": "latency, predicted",
    "config_left": "config left as it was",
    "tokens_per_second": "tokens per second",
    "cache_bytes_per_token": "cache, bytes per token",
}


def measure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "params":
        return whole(value)
    if name == "flops":
        return quantity(value)
    if name.endswith("_ms"):
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    if is_share(name, value):
        return f"{100 * value:.2f} %"
    return cell(name, value)


def is_share(name: str, *values: float) -> bool:
    """Whether these are shares that a reader takes in per cent: accuracies, unless they are in per cent already."""
    return "accuracy" in name and all(abs(value) <= 1 for value in values)


def change(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if is_share(name, before, after):
        return f"{100 * (after - before):+.2f} points".replace("-", "−")
    if before == 0:
        return ""
    text = f"{100 * (after / before - 1):+.1f} %".replace("-", "−")
    return f"{text} ({before / after:.2f}×)" if name.endswith("_ms") and after else text


def shown(report: Report, name: str, when: str) -> str:
    """A measure `before`, `after` or `healed`; a range, or a round number, where the clock was unsteady."""
    if name == "latency_ms" and unsteady(report.timing) and when in report.timing:
        return span(report.timing[when])
    value = getattr(report, when).get(name)
    if name in _CLOCKED and value and unsteady(report.timing):
        return f"≈ {quantity(float(f'{value:.1g}'))}"
    return measure(name, value)


def changed(report: Report, name: str, when: str) -> str:
    """How far a measure is from what it was before; a range where the clock was unsteady."""
    taken = getattr(report, when)
    if name == "latency_ms" and unsteady(report.timing) and when == "after" and name in taken:
        faster = report.timing.get("speedup")
        return f"{times(faster)} as fast" if faster else ""
    if name in _CLOCKED and unsteady(report.timing):
        return ""
    return change(name, report.before.get(name), taken.get(name))


def unsteady(timing: Mapping[str, Any]) -> bool:
    return timing.get("steady", True) is False


def span(percentiles: Mapping[str, float]) -> str:
    """`1.42–1.58 ms`: from the 20th to the 80th percentile."""
    return f"{percentiles['p20']:.3g}–{percentiles['p80']:.3g} ms"


def times(percentiles: Mapping[str, float]) -> str:
    """`1.9–2.1×`: from the 20th to the 80th percentile."""
    return f"{percentiles['p20']:.3g}–{percentiles['p80']:.3g}×"


def timing_lines(timing: Mapping[str, Any]) -> list[str]:
    """How latency was taken, in a line; and another where the clock was unsteady."""
    spans = [f"{span(timing[when])} {when}" for when in ("before", "after") if when in timing]
    faster = [f"{times(timing['speedup'])} as fast, pass by pass"] if "speedup" in timing else []
    threads, passes = timing.get("threads"), timing.get("passes")
    how = [
        *([f"{passes} passes each, {'in turn' if faster else 'one model after the other'}"] if passes else []),
        *([f"{threads} thread" if threads == 1 else f"{threads} threads"] if threads else []),
        *([f"inputs {', '.join(timing['inputs'])}"] if timing.get("inputs") else []),
        *([f"on {timing['device']['device']} ({timing['device']['name']})"] if timing.get("device") else []),
    ]
    said = f"latency, 20th to 80th percentile: {', '.join([*spans, *faster])}"
    return [f"{said}; {', '.join(how)}" if how else said, *([unsteady_said(timing)] if unsteady(timing) else [])]


def unsteady_said(timing: Mapping[str, Any]) -> str:
    return (
        f"the clock was unsteady (80th percentile over {timing['bound']:g} times the 20th), as beside other work: no "
        "one number is given, and it should be measured again on a quiet machine"
    )


def cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        if name in ("rate", "share", "unexplained"):
            return f"{100 * value:.1f} %"
        return whole(value) if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, Mapping):
        given = {key: entry for key, entry in value.items() if not empty(entry)}
        return ", ".join(f"{key.replace('_', ' ')} {_nested(key, entry)}" for key, entry in given.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_nested(name, entry) for entry in value) or "–"
    return str(value)


def empty(value: Any) -> bool:
    return value is None or (isinstance(value, (Mapping, list, tuple)) and not value)


def _nested(name: str, value: Any) -> str:
    """An entry within an entry: in brackets, and only counted where it is long."""
    if not isinstance(value, (Mapping, list, tuple)):
        return cell(name, value)
    return f"({cell(name, value)})" if len(value) <= 6 else f"({len(value)} entries)"


def whole(value: float) -> str:
    return f"{int(value):,}"


def groups_said(number: int) -> str:
    return f"{number} group" if number == 1 else f"{number} groups"


def through_zero(entries: Mapping[str, Mapping[str, float]]) -> str:
    """What it costs that weights were given no bias: what is left of what goes, on average and where it is worst."""

    def shares(of: Mapping[str, float]) -> str:
        return f"{100 * of['unexplained']:.2g} % ({100 * of['with_intercept']:.2g} % with one)"

    count = len(entries)
    mean = {key: sum(entry[key] for entry in entries.values()) / count for key in ("unexplained", "with_intercept")}
    weights = "1 weight" if count == 1 else f"{count} weights"
    said = f"{weights} fitted without a bias: {shares(mean)} of what goes is not made up for"
    name, worst = max(entries.items(), key=lambda item: item[1]["unexplained"] - item[1]["with_intercept"])
    return said if count == 1 else f"{said}, most is lost at {name}: {shares(worst)}"


def plain(values: Iterable[Any]) -> bool:
    return all(value is None or isinstance(value, (str, bool, int, float)) for value in values)


def numbered(classes: Mapping[str, str]) -> dict[str, str]:
    """Of classes of modules by group, those that a reader needs: where a name ends in a number (`features.3`)."""
    return {name: kind for name, kind in classes.items() if name.partition("[")[0].rpartition(".")[2].isdigit()}
