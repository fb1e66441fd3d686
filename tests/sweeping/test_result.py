"""What a sweep found, as text, frame, file and picture."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import fairkern as fk


def sweep(seeds: tuple[int, ...] = (0,), measures: tuple[str, ...] = ("accuracy", "loss")) -> fk.Sweep:
    values = {"accuracy": 0.9, "loss": 0.5}
    rows = [
        {
            "method": method,
            "seed": seed,
            "budget": budget,
            "by": "keep_params",
            "params": int(1000 * budget) - 3,
            "flops": 5000 * budget,
            **{name: values[name] * budget + seed / 100 for name in measures},
            "seconds": 0.25,
        }
        for seed in seeds
        for method in ("tod", "uniform-l1")
        for budget in (0.9, 0.5, 0.7)
    ]
    before = {"params": 1000, "flops": 5000, **{name: values[name] for name in measures}}
    return fk.Sweep("Net", "keep_params", tuple(rows), before, "least_squares")


def test_what_is_printed_is_short() -> None:
    assert repr(sweep()) == "<Sweep of Net by keep_params: 2 methods, 3 budgets, 1 seed; accuracy, loss>"
    assert (sweep().methods, sweep((3, 1)).seeds) == (("tod", "uniform-l1"), (3, 1))
    assert sweep().budgets == (0.9, 0.7, 0.5)


def test_a_table_for_each_measure() -> None:
    text = str(sweep())
    assert text == sweep().table()
    lines = [line.split() for line in text.splitlines()]
    assert "Net, compensated by least squares" in text
    assert "accuracy by keep_params; whole model: 90.00 %" in text
    assert ["method", "0.9", "0.7", "0.5"] in lines
    assert ["tod", "81.00", "%", "63.00", "%", "45.00", "%"] in lines
    assert ["uniform-l1", "0.45", "0.35", "0.25"] in lines
    assert max(map(len, text.splitlines())) <= 100


def test_several_seeds_are_told_together() -> None:
    text = str(sweep((0, 1)))
    assert "accuracy by keep_params, mean ± deviation of 2 seeds; whole model: 90.00 %" in text
    assert "81.50 ± 0.71 %" in text
    assert "0.455 ± 0.0071" in text


def test_many_budgets_take_several_tables() -> None:
    rows = tuple({**sweep().rows[0], "budget": k / 20} for k in range(1, 15))
    text = str(fk.Sweep("Net", "keep_params", rows, sweep().before, "none"))
    assert text.count("accuracy by keep_params") == 3
    assert "Net, not compensated" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_frame_has_the_rows() -> None:
    pytest.importorskip("pandas")
    frame = sweep((0, 1)).to_pandas()
    columns = ["method", "seed", "budget", "by", "kept", "params", "flops", "accuracy", "loss", "seconds"]
    assert list(frame) == columns
    assert frame["seed"].dtype == "int64"
    mine = frame[frame["method"] != "whole model"]
    assert mine.drop(columns="kept").to_dict("records") == list(sweep((0, 1)).rows)
    assert (mine["kept"] * 1000 == mine["params"]).all()
    whole = frame[frame["method"] == "whole model"].to_dict("records")
    assert [(row["seed"], row["kept"], row["budget"]) for row in whole] == [(0, 1.0, 1.0), (1, 1.0, 1.0)]
    assert {name: whole[0][name] for name in sweep().before} == sweep().before
    pivoted = frame.pivot_table(index="method", columns="budget", values="accuracy")
    assert pivoted.loc["tod", 0.5] == pytest.approx(0.455)


def test_a_file_has_the_rows_to_the_last_digit(tmp_path: Path) -> None:
    sweep().to_csv(tmp_path / "sweep.csv")
    with open(tmp_path / "sweep.csv", newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert (back[0]["method"], float(back[0]["kept"]), float(back[0]["accuracy"])) == ("whole model", 1.0, 0.9)
    assert len(back) == 1 + len(sweep().rows)
    for row, given in zip(back[1:], sweep().rows, strict=True):
        assert float(row.pop("kept")) == given["params"] / 1000
        assert row.keys() == given.keys()
        assert all(type(given[name])(text) == given[name] for name, text in row.items())
    with pytest.raises(fk.InputError, match="path is empty"):
        sweep().to_csv("")
    sweep().to_csv(tmp_path / "new" / "sweep.csv")
    assert (tmp_path / "new" / "sweep.csv").read_bytes() == (tmp_path / "sweep.csv").read_bytes()


def test_no_cell_of_a_file_is_a_formula(tmp_path: Path) -> None:
    rows = tuple({**row, "method": "=1+1", "-loss": row["loss"]} for row in sweep().rows)
    fk.Sweep("Net", "keep_params", rows, {**sweep().before, "-loss": -0.5}, "none").to_csv(tmp_path / "sweep.csv")
    with open(tmp_path / "sweep.csv", newline="", encoding="utf-8") as file:
        names, whole, *back = list(csv.reader(file))
    assert "'-loss" in names
    assert {row[0] for row in back} == {"'=1+1"}
    assert whole[names.index("'-loss")] == "-0.5"  # a number stays one


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_of_the_curves(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    sweep((0, 1)).picture(tmp_path / f"sweep.{ending}")
    head = (tmp_path / f"sweep.{ending}").read_bytes()[:60]
    assert {"png": b"PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending] in head


def test_the_picture_says_what_the_rows_say() -> None:
    pytest.importorskip("matplotlib")
    from fairkern.report import draw_curves

    found = sweep((0, 1))
    figure = draw_curves(found.rows, found.before, found.measures, "Net")
    first, second = figure.axes
    assert [axes.get_ylabel() for axes in (first, second)] == ["accuracy", "loss"]
    assert first.get_xlabel() == "parameters kept, %"
    lines = {line.get_label(): line for line in first.get_lines()}
    assert list(lines) == ["tod", "uniform-l1", "whole model"]
    assert list(lines["tod"].get_xdata()) == pytest.approx([49.7, 69.7, 89.7])
    assert list(lines["tod"].get_ydata()) == pytest.approx([0.455, 0.635, 0.815])
    assert lines["whole model"].get_ydata()[0] == 0.9
    assert len(first.collections) == 2  # the range of the seeds
    figure.draw_without_rendering()
    right = max(axes.get_tightbbox().x1 for axes in (first, second))
    assert figure.legends[0].get_window_extent().x0 >= right  # beside the axes, over no point


def test_pictures_that_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for ending in ("xls", "gif", "jpg"):
        with pytest.raises(fk.InputError, match=rf"ends in \.{ending}; expected one of png, svg, pdf"):
            sweep().picture(tmp_path / f"sweep.{ending}")
    with pytest.raises(fk.InputError, match="no rows with a measure"):
        fk.Sweep("Net", "keep_params", (), {"params": 1}, "none").picture(tmp_path / "sweep.png")
    assert not list(tmp_path.iterdir())
