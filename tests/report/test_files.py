from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairkern.artefacts import SCHEMA
from fairkern.errors import ArtefactError, InputError
from fairkern.report import load_report, progress, save_report, versions
from fairkern.types import Report


@pytest.fixture
def report() -> Report:
    return Report(
        "Net",
        {"params": 10, "accuracy": 0.5},
        {"params": 5},
        ({"group": "conv1", "rate": np.float64(0.5), "removed": np.arange(3)},),
        {"trace": 0.25},
        {"backend": {"gather": "native"}, "passes": 1},
        versions(),
    )


def test_round_trip(report, tmp_path):
    path = tmp_path / "report.json"
    save_report(report, path)
    loaded = load_report(path)
    assert loaded.groups == ({"group": "conv1", "rate": 0.5, "removed": [0, 1, 2]},)
    for field in ("title", "before", "after", "stages", "choices", "versions"):
        assert getattr(loaded, field) == getattr(report, field)
    assert json.loads(path.read_text())["format"] == "fairkern.report"
    assert versions()["torch"] == torch.__version__


def test_what_was_healed_is_in_the_file_where_it_was(report, tmp_path):
    path = tmp_path / "report.json"
    save_report(report, path)
    assert "healed" not in json.loads(path.read_text())  # as before there was such a column
    assert load_report(path).healed == {}
    save_report(replace(report, healed={"accuracy": 0.75}), path)
    assert json.loads(path.read_text())["healed"] == {"accuracy": 0.75}
    assert load_report(path).healed == {"accuracy": 0.75}


def test_what_was_timed_tried_and_where_is_in_the_file_where_it_is_known(report, tmp_path):
    path = tmp_path / "report.json"
    timing = {"before": {"p20": 1.0, "p50": 1.5, "p80": 2.0}, "inputs": ["2x3 float32"], "steady": False, "passes": 7}
    curve = ({"method": "residual", "budget": 0.5, "accuracy": 0.75}, {"method": "residual", "budget": 0.25})
    more = {"timing": timing, "curve": curve, "environment": {"cores": 2, "seeds": {"scoring": 0}}}
    save_report(report, path)
    assert not more.keys() & json.loads(path.read_text()).keys()
    empty = load_report(path)
    assert (empty.timing, empty.curve, empty.environment) == ({}, (), {})
    save_report(replace(report, **more), path)
    loaded = load_report(path)
    assert {name: getattr(loaded, name) for name in more} == more


def test_what_json_cannot_hold_leaves_the_old_file(report, tmp_path):
    path = tmp_path / "report.json"
    save_report(report, path)
    was = path.read_bytes()
    broken = Report("Net", {"accuracy": float("nan")}, {}, (), {})
    with pytest.raises(InputError, match="accuracy"):
        save_report(broken, path)
    assert path.read_bytes() == was
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_text(p.read_text()[:-10]),
        lambda p: p.write_text("{}"),
        lambda p: p.write_text(p.read_text().replace("fairkern.report", "fairkern.plan")),
        lambda p: p.write_text(p.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')),
        lambda p: p.write_text(p.read_text().replace('"stages"', '"stage"')),
        lambda p: p.write_text(p.read_text().replace('"params": 10', '"params": "ten"')),
    ],
)
def test_damaged(report, tmp_path, damage):
    path = tmp_path / "report.json"
    save_report(report, path)
    damage(path)
    with pytest.raises(ArtefactError, match=r"report\.json"):
        load_report(path)


def test_progress_is_silent_without_a_terminal(capsys):
    for show in (True, False):
        with progress(show) as on_batch:
            for done in range(1, 4):
                on_batch(done, None if done < 2 else 3, "score")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
