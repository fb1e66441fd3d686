from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import fairkern as fk
from fairkern.errors import InputError
from fairkern.report import draw, save_picture
from fairkern.report.pictures import _shortened
from fairkern.types import AxisGroup, Plan, PlanGroup, Scores, UnitMap
from tests.experts import build, samples

pytest.importorskip("matplotlib")
from matplotlib.text import Text


def scored(groups: int, units: int = 24, constant: bool = False) -> tuple[Scores, Plan]:
    rng = np.random.default_rng(0)
    named = tuple(AxisGroup(f"net.block{i}.conv", "channel", units, (), ()) for i in range(groups))
    frozen = AxisGroup("net.frozen", "channel", 3, (), (), frozen="asked")
    units_map = UnitMap("Net", (frozen, *named), (), (), (), (), (), {})
    signals = {
        name: (np.zeros(0), *(np.zeros(units) if constant else rng.lognormal(size=units) for _ in named))
        for name in ("wasserstein", "taylor")
    }
    removed = [np.sort(np.argsort(u)[: i % units]) for i, u in enumerate(signals["wasserstein"][1:])]
    plan = Plan(
        "Net",
        tuple(PlanGroup(g.name, g.kind, g.units, gone) for g, gone in zip(named, removed, strict=True)),
        (),
        (),
        {},
        {"keep_params": 0.5, "removal": "wasserstein", "protect": "taylor"},
        {"tolerance": 0.25, "params_before": 200, "params_after": 99},
    )
    return Scores(units_map, signals, {}), plan


@pytest.mark.parametrize("groups", [1, 2, 20, 90])
@pytest.mark.parametrize("constant", [False, True])
def test_pictures_of_many_sizes(groups, constant, tmp_path):
    backend = sys.modules["matplotlib"].get_backend(auto_select=False)
    scores, plan = scored(groups, constant=constant)
    save_picture(scores, plan, tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert sys.modules["matplotlib"].get_backend(auto_select=False) == backend
    assert "matplotlib.pyplot" not in sys.modules


def test_what_is_drawn():
    scores, plan = scored(20)
    figure = draw(scores, plan)
    rates, curves, scatter = (axes for axes in figure.get_axes() if axes.get_title(loc="left"))
    bars = [patch.get_width() for patch in rates.patches[20:]]
    assert bars == pytest.approx([100 * group.rate for group in plan.groups])
    assert [text.get_text() for text in rates.texts][:2] == ["0 of 24", "1 of 24"]
    lines = [line for line in curves.lines if len(line.get_xdata()) == 24]
    dots = [line for line in curves.lines if len(line.get_xdata()) == 1]
    assert len(lines) == 20
    assert len(dots) == sum(bool(len(group.removed)) for group in plan.groups)
    assert all(line.get_ydata()[-1] == 1 for line in lines)
    stays, gone = (len(points.get_offsets()) for points in scatter.collections)
    assert gone == sum(len(group.removed) for group in plan.groups)
    assert stays + gone == 20 * 24
    assert figure._suptitle.get_text() == "Net  ·  keep_params=0.5  ·  keeps 49.5 % of parameters"


def test_labels_do_not_overlap():
    scores, plan = scored(20)
    figure = draw(scores, plan)
    figure.draw_without_rendering()
    rates = figure.get_axes()[0]
    boxes = [label.get_window_extent() for label in rates.get_yticklabels()]
    assert len(boxes) == 20
    for above, below in itertools.pairwise(boxes):
        assert above.y0 > below.y1
        assert above.x0 >= 0


def boxes(figure, of):
    """Where texts or other artists lie, in pixels, as far as they are drawn."""
    figure.draw_without_rendering()
    found = [artist for axes in figure.get_axes() for artist in axes.findobj(of)] + figure.findobj(of)
    shown = {id(a): a for a in found if a.get_visible() and (not isinstance(a, Text) or a.get_text().strip())}
    return [(a.get_window_extent(), a) for a in shown.values()]


def over(first, second):
    return [
        (a.get_text(), getattr(b, "get_text", lambda b=b: b)())
        for x, a in first
        for y, b in second
        if a is not b and min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1
    ]


@pytest.mark.parametrize("groups", [1, 2, 12, 66, 90])
def test_no_text_runs_over_text_or_bars_and_no_legend_over_points(groups):
    """Also where names are long, and numbers with their class beside them."""
    scores, plan = scored(groups)
    long = {g.name: f"net.{'deep.' * (i % 4)}features.{i}" for i, g in enumerate(plan.groups)}
    plan = replace(plan, groups=tuple(replace(g, name=long[g.name]) for g in plan.groups))
    named = (replace(g, name=long.get(g.name, g.name)) for g in scores.units.groups)
    classes = dict.fromkeys(long.values(), "ConvTranspose2d")
    scores = replace(scores, units=replace(scores.units, groups=tuple(named), classes=classes))
    figure = draw(scores, plan)
    rates, _, scatter, *_ = (axes for axes in figure.get_axes() if axes.get_title(loc="left"))
    assert rates.get_yticklabels()[0].get_text().endswith("features.0 ConvTranspose2d")
    texts = [(box, text) for box, text in boxes(figure, Text) if box.width > 1]
    ticks = {label for axes in figure.get_axes() for axis in (axes.xaxis, axes.yaxis) for label in drawn(axis)}
    texts = [(box, text) for box, text in texts if text in ticks or not is_tick(figure, text)]
    assert len(texts) > groups
    assert over(texts, texts) == []
    assert over(texts, [(bar.get_window_extent(), bar) for bar in rates.patches]) == []
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(scatter.get_window_extent())
    whole = figure.bbox
    assert all(box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0 and box.y1 <= whole.y1 for box, _ in texts)


def drawn(axis):
    """Labels of ticks within the axis; beyond its ends matplotlib keeps some that it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def is_tick(figure, text):
    every = (axis for axes in figure.get_axes() for axis in (axes.xaxis, axes.yaxis))
    return any(
        text in (t.label1, t.label2) for axis in every for t in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    )


def test_other_formats_and_endings(tmp_path):
    scores, plan = scored(2)
    save_picture(scores, plan, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    save_picture(scores, plan, tmp_path / "picture.PDF")
    assert (tmp_path / "picture.PDF").read_bytes().startswith(b"%PDF-")
    with pytest.raises(InputError, match=r"\.docx"):
        save_picture(scores, plan, tmp_path / "picture.docx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.PDF", "picture.svg"]


def test_scores_of_another_plan():
    scores, plan = scored(2)
    with pytest.raises(InputError, match="removal='l1'"):
        draw(scores, replace(plan, request={"removal": "l1"}))
    renamed = replace(plan.groups[0], name="elsewhere")
    with pytest.raises(InputError, match="elsewhere"):
        draw(scores, replace(plan, groups=(renamed,)))


def test_without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"fairkern\[demo\]"):
        draw(*scored(1))


def test_names_lose_what_they_share():
    assert _shortened(["net.a.conv", "net.b"]) == ["a.conv", "b"]
    assert _shortened(["net.a.conv", "net.a.fc"]) == ["conv", "fc"]
    assert _shortened(["net.a"]) == ["net.a"]
    assert _shortened(["a", "a.b"]) == ["a", "a.b"]
    assert _shortened([]) == []
    assert len(_shortened(["x" * 80])[0]) == 34


def test_pictures_show_sets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, (x, y) = build(shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    fk.picture(scores, scores.plan(keep_params=0.6), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_signals_are_called_what_they_are():
    """U and R are two of the signals; a plan by another one does not show it under their names."""

    def said(plan):
        _, curves, scatter = (axes for axes in draw(scores, plan).get_axes() if axes.get_title(loc="left"))
        titles = [axes.get_title(loc="left") for axes in (curves, scatter)]
        return [*titles, scatter.get_xlabel(), scatter.get_ylabel()]

    scores, plan = scored(3)
    assert said(plan) == [
        "Tolerance of Difference between U and R\ndots: what goes; dashes: tolerance 0.25",
        "Every unit: U (low goes first) against R (high stays)",
        "U, in medians of the group",
        "R, in medians of the group",
    ]
    scores = replace(scores, signals={**scores.signals, "residual": scores.signals["wasserstein"]})
    plan = replace(plan, request={"keep_latency": 0.5, "removal": "residual", "allocation": "global"})
    assert said(plan) == [
        "Second-order saliency\ndots: what goes; dashes: threshold 0.25",
        "Every unit: residual (low goes first) against R",
        "residual, in medians of the group",
        "R, in medians of the group",
    ]
    assert draw(scores, plan)._suptitle.get_text().startswith("Net  ·  keep_latency=0.5  ·  ")
