"""Files that earlier states of the code wrote are read, mean what they meant, and are written again as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import fairkern as fk
from fairkern.artefacts import load_latency, save_latency
from fairkern.types import Silence
from tests.fixtures.models import MODELS, PLANNING, batches, build

pytestmark = pytest.mark.filterwarnings("ignore:.*was written before files had a sum")

FOLDER = Path(__file__).parent / "fixtures" / "eb63876"
SUMMED = Path(__file__).parent / "fixtures" / "d62281e"  # the first whose files have sums
CUT = {**{name: name for name in MODELS}, "steps": "convolutions", "latency": "convolutions"}  # folder → its model
PRUNED = [name for name in CUT if name != "latency"]
OWN = ("fairkern", "schema", "sha256", "plan")  # the version that wrote a file and its layout, and sums


def content(path: Path) -> dict[str, Any]:
    """What a JSON file holds, but for what is its writer's own."""
    return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in OWN}


def tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata of a safetensors file, but for what is its writer's own, and its arrays."""
    with safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    texts: dict[str, Any] = {key: value for key, value in metadata.items() if key not in OWN}
    for key in ("content", "fairkern"):
        if metadata.get(key, "").startswith("{"):
            texts[key] = {k: v for k, v in json.loads(metadata[key]).items() if k not in OWN}
    return texts, {n: (a.dtype, a.shape, a.tobytes()) for n, a in arrays.items()}


def difference(one: Tensor, other: Tensor) -> float:
    """Relative to the size of the result."""
    return (one - other).abs().max().item() / other.abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_read_and_written_again(name: str, tmp_path: Path) -> None:
    path = FOLDER / name / "scores.safetensors"
    scores = fk.Scores.load(path)
    assert scores.units.proven
    assert type(scores.units) is fk.UnitMap
    scores.save(tmp_path / "scores.safetensors")
    assert tensors(tmp_path / "scores.safetensors") == tensors(path)


@pytest.mark.parametrize("name", CUT)
def test_plans_are_read_and_written_again(name: str, tmp_path: Path) -> None:
    plan = fk.Plan.load(FOLDER / name / "plan.json")
    plan.save(tmp_path / "plan.json")
    assert content(tmp_path / "plan.json") == content(FOLDER / name / "plan.json")


@pytest.mark.parametrize("name", PRUNED)
def test_reports_are_read_and_written_again(name: str, tmp_path: Path) -> None:
    report = fk.Report.load(FOLDER / name / "report.json")
    assert str(report.after["params"]) in report.table().replace(",", "")
    report.save(tmp_path / "report.json")
    assert content(tmp_path / "report.json") == content(FOLDER / name / "report.json")


def test_latency_tables_are_read_and_written_again(tmp_path: Path) -> None:
    table = load_latency(FOLDER / "latency" / "latency.json")
    save_latency(table, tmp_path / "latency.json")
    assert content(tmp_path / "latency.json") == content(FOLDER / "latency" / "latency.json")


def assert_same_plan(plan: fk.Plan, name: str) -> None:
    """The same units go from the same places, at the same cost."""
    before = fk.Plan.load(FOLDER / name / "plan.json")
    for groups in ("groups", "axes"):
        for one, other in zip(getattr(plan, groups), getattr(before, groups), strict=True):
            np.testing.assert_array_equal(one.removed, other.removed)
    for same in ("attributes", "sites", "replacements", "config"):
        assert getattr(plan, same) == getattr(before, same)
    assert (dict(plan.lists), dict(plan.shapes)) == (dict(before.lists), dict(before.shapes))
    assert plan.result.keys() - {"left_alone", "serves"} == before.result.keys()  # these were not said then
    for key, value in before.result.items():
        assert plan.result[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


@pytest.mark.parametrize("name", MODELS)
def test_scores_give_the_plan_that_they_gave(name: str) -> None:
    scores = fk.Scores.load(FOLDER / name / "scores.safetensors")
    allocation = fk.Plan.load(FOLDER / name / "plan.json").request["allocation"]  # whose default was another one
    assert_same_plan(scores.plan(**{"allocation": allocation, **PLANNING[name]}), name)


def test_a_latency_table_gives_the_plan_that_it_gave() -> None:
    scores = fk.Scores.load(FOLDER / "convolutions" / "scores.safetensors")
    table = load_latency(FOLDER / "latency" / "latency.json")
    assert_same_plan(scores.plan(keep_latency=0.7, latency=table), "latency")


@pytest.mark.parametrize("name", CUT)
def test_plans_apply_to_their_models(name: str) -> None:
    model, plan = build(CUT[name]), fk.Plan.load(FOLDER / name / "plan.json")
    x = torch.cat([x for x, _ in batches(CUT[name])])
    small = fk.apply(model, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"] < plan.result["params_before"]
    with torch.no_grad(), plan.masked(model):
        masked = model(x)
    assert difference(small(x), masked) < 1e-12
    assert difference(small(x), model(x)) > 1e-3, "the plan does something"


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_of_their_models(name: str) -> None:
    """Groups and their order are those that tracing finds today, so that stored and new maps go together."""
    stored = fk.Scores.load(FOLDER / name / "scores.safetensors").units
    found = fk.trace(build(name), batches(name)[0][0][:2])
    for one, other in zip(found.groups, stored.groups, strict=True):
        assert (one.name, one.kind, one.units, one.sets, one.least, one.frozen) == (
            *(other.name, other.kind, other.units, other.sets, other.least, other.frozen),
        )
        assert [str(a.axis) for a in one.axes] == [str(a.axis) for a in other.axes]
        assert [(t.name, t.side, t.dim, t.length) for t in one.taps] == [
            (t.name, t.side, t.dim, t.length) for t in other.taps
        ]


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_folders_give_what_they_gave(name: str, tmp_path: Path) -> None:
    folder, stored = FOLDER / name / "small", load_file(FOLDER / name / "outputs.safetensors")
    small = fk.load_pruned(build(CUT[name], seed=9), folder)
    with torch.no_grad():
        assert difference(small(stored["x"]), stored["y"]) < 1e-12
    fk.save_pruned(small, fk.Plan.load(folder / "plan.json"), tmp_path / "small")
    assert tensors(tmp_path / "small" / "model.safetensors") == tensors(folder / "model.safetensors")
    assert content(tmp_path / "small" / "plan.json") == content(folder / "plan.json")


def test_compensated_folders_hold_biases_that_were_added() -> None:
    for name in ("convolutions", "steps"):
        fresh = build("convolutions")
        assert fresh.conv2.bias is None
        small = fk.load_pruned(fresh, FOLDER / name / "small")
        assert isinstance(small.conv2, nn.Conv2d)
        assert small.conv2.bias is not None
        assert small.conv2.bias.abs().max() > 0


def test_every_kind_of_content_is_there() -> None:
    plans = {name: fk.Plan.load(FOLDER / name / "plan.json") for name in CUT}
    assert [name for name, plan in plans.items() if plan.replacements] == ["attention"]
    assert [name for name, plan in plans.items() if plan.sites] == ["sizes"]
    assert [name for name, plan in plans.items() if plan.lists] == ["listed"]
    assert [name for name, plan in plans.items() if plan.config] == ["configured"]
    assert [name for name, plan in plans.items() if any(a.silence is Silence.MINUS_INFINITY for a in plan.axes)] == [
        "fused",
        "listed",
    ]
    assert [name for name, plan in plans.items() if any(g.sets > 1 for g in plan.groups)] == ["fused"]
    assert [name for name, plan in plans.items() if "steps" in plan.result] == ["steps"]
    scores = {name: fk.Scores.load(FOLDER / name / "scores.safetensors") for name in MODELS}
    assert [name for name, s in scores.items() if not s.moments] == ["grouped", "sizes", "configured"]
    assert [name for name, s in scores.items() if "wasserstein" not in s.signals] == ["attention", "configured"]
    assert "convolutions" in [name for name, s in scores.items() if s.grids]
    assert [name for name, s in scores.items() if s.units.config] == ["configured"]


@pytest.mark.filterwarnings("error:.*had a sum")
def test_files_with_sums_are_read_without_a_note(tmp_path: Path) -> None:
    """Sums that were written then are those of today, so that no such file is ever taken for a damaged one."""
    folder = SUMMED / "convolutions"
    fk.Scores.load(folder / "scores.safetensors").save(tmp_path / "scores.safetensors")
    assert tensors(tmp_path / "scores.safetensors") == tensors(folder / "scores.safetensors")
    fk.Plan.load(folder / "plan.json").save(tmp_path / "plan.json")
    fk.Report.load(folder / "report.json").save(tmp_path / "report.json")
    save_latency(load_latency(SUMMED / "latency" / "latency.json"), tmp_path / "latency.json")
    fk.Plan.load(SUMMED / "latency" / "plan.json")
    for name in ("convolutions/plan.json", "convolutions/report.json", "latency/latency.json"):
        assert content(tmp_path / Path(name).name) == content(SUMMED / name)
    small, stored = (
        fk.load_pruned(build("convolutions", seed=9), folder / "small"),
        load_file(folder / "outputs.safetensors"),
    )
    with torch.no_grad():
        assert difference(small(stored["x"]), stored["y"]) < 1e-12


@pytest.mark.filterwarnings("default:.*had a sum")
def test_files_without_sums_are_read_with_a_note() -> None:
    folder = FOLDER / "convolutions"
    for load in (
        lambda: fk.Scores.load(folder / "scores.safetensors"),
        lambda: fk.Plan.load(folder / "plan.json"),
        lambda: fk.Report.load(folder / "report.json"),
        lambda: load_latency(FOLDER / "latency" / "latency.json"),
        lambda: fk.load_pruned(build("convolutions"), folder / "small"),
    ):
        with pytest.warns(UserWarning, match="written before files had a sum"):
            load()
