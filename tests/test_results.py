"""What users hold is made of plain records by type, and options are the same wherever something is planned."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern import allocate, types
from fairkern.healing import Healed
from fairkern.pruning import PruningOptions


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]], fk.Scores]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    loader = [(torch.randn(12, 6), torch.arange(12) % 3) for _ in range(2)]
    return model, loader, fk.score(model, loader, nn.CrossEntropyLoss(), gram=True, progress=False)


def test_planning_options_and_their_defaults_are_one_list() -> None:
    fields = {field.name for field in dataclasses.fields(allocate.Planning)}
    assert allocate.PlanningOptions.__annotations__.keys() == fields


def test_what_prune_hands_on_is_what_score_takes() -> None:
    keywords = {n for n, p in inspect.signature(fk.score).parameters.items() if p.kind is p.KEYWORD_ONLY}
    handed = PruningOptions.__annotations__.keys() - allocate.PlanningOptions.__annotations__.keys()
    own = {"max_remove", "ranks"}  # a limit of plans, which scores may be told of; what prune speaks of itself
    assert handed | own == keywords


@pytest.mark.parametrize("function", [fk.Scores.plan, fk.UnitMap.plan, fk.plan_latency, fk.prune])
def test_options_are_typed_at_run_time_too(function: Callable[..., object]) -> None:
    assert typing.get_type_hints(function)["return"]


@pytest.mark.parametrize(
    ("option", "hint"), [("keep_parms", "keep_params"), ("round_too", "round_to"), ("foo", "options")]
)
def test_an_option_that_nobody_knows_is_refused(made: tuple, option: str, hint: str) -> None:
    model, loader, scores = made
    with pytest.raises(TypeError, match=rf"Scores.plan\(\) got .*{option}.*{hint}"):
        scores.plan(keep_params=0.5, **{option: 1})
    with pytest.raises(TypeError, match=rf"UnitMap.plan\(\) got .*{option}.*{hint}"):
        scores.units.plan(keep_params=0.5, **{option: 1})
    with pytest.raises(TypeError, match=rf"prune\(\) got .*{option}.*{hint}"):
        fk.prune(model, untouchable(), nn.CrossEntropyLoss(), keep_params=0.5, progress=False, **{option: 1})
    if option != "keep_parms":
        with pytest.raises(TypeError, match=rf"plan_latency\(\) got .*{option}.*{hint}"):
            fk.plan_latency(scores, model, loader[0][0], 0.5, **{option: 1})


def untouchable() -> Iterator[object]:
    pytest.fail("the loader was read before the options were")
    yield


@pytest.mark.parametrize("option", [{"removal": "taylor"}, {"allocation": "tod"}, {"tod": 0.5}])
def test_a_plan_without_scores_has_limits_and_no_signals(made: tuple, option: dict[str, object]) -> None:
    units = made[2].units
    assert all((g.units - g.removed.size) % 4 == 0 for g in units.plan(keep_params=0.5, round_to=4).groups)
    with pytest.raises(TypeError, match=rf"UnitMap.plan\(\) got an unexpected keyword argument '{next(iter(option))}'"):
        units.plan(**option)


@pytest.mark.parametrize("field", dataclasses.fields(allocate.Planning), ids=lambda field: field.name)
def test_the_defaults_that_help_shows_are_those_that_hold(field: dataclasses.Field) -> None:
    assert f"{field.name}={json.dumps(field.default) if field.default is not None else None}:" in shown(
        fk.Scores.plan
    ) or (field.name == "ignore" and "ignore=():" in shown(fk.Scores.plan))
    if field.name in allocate.LimitOptions.__annotations__:
        assert f"`{field.name}={field.default}`" in shown(fk.UnitMap.plan)
    else:
        assert f"`{field.name}`" in shown(fk.prune)


def shown(function: Callable[..., object]) -> str:
    return inspect.getdoc(function) or ""


def test_records_become_what_users_hold_and_stay_it(made: tuple) -> None:
    scores = made[2]
    plain = types.Scores(**{**vars(scores), "units": types.UnitMap(**vars(scores.units))})
    public = fk.Scores.of(plain)
    assert (type(public), type(public.units)) == (fk.Scores, fk.UnitMap)
    assert vars(public.units) == vars(scores.units)
    assert fk.Scores.of(public) is public
    assert fk.UnitMap.of(public.units) is public.units
    plan = scores.plan(keep_params=0.5)
    assert fk.Plan.of(plan) is plan
    assert type(fk.Plan.of(types.Plan(**vars(plan)))) is fk.Plan


def test_moments_made_by_hand_may_be_arrays(made: tuple, tmp_path: Path) -> None:
    model, _, scores = made
    moments = {
        n: types.Moments(m.gram.numpy(), m.total.numpy(), m.count, m.per_unit) for n, m in scores.moments.items()
    }
    by_hand = dataclasses.replace(scores, moments=moments)
    plan = by_hand.plan(keep_params=0.5)
    x = torch.randn(4, 6)
    small, other = (fk.apply(model, plan, compensate="least_squares", scores=s) for s in (by_hand, scores))
    assert torch.equal(small(x), other(x))
    by_hand.save(tmp_path / "scores.safetensors")
    back = fk.Scores.load(tmp_path / "scores.safetensors")
    assert all(torch.equal(m.gram, moments[n].gram) for n, m in back.moments.items())


def test_a_report_comes_back(made: tuple, tmp_path: Path) -> None:
    model, loader, _ = made
    _, report = fk.prune(model, loader, nn.CrossEntropyLoss(), keep_params=0.5, progress=False)
    report.save(tmp_path / "report.json")
    back = fk.Report.load(tmp_path / "report.json")
    assert type(back) is fk.Report
    assert back.plan is None  # not part of the file
    assert (back.title, back.groups, back.after) == (report.title, report.groups, report.after)
    back.save(tmp_path / "again.json")
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("report.json", "again.json"))
    assert first == second
    assert isinstance(back.table(), str)


def test_silence_of_a_plan_is_that_of_its_map(made: tuple) -> None:
    scores = made[2]
    plan = scores.plan(keep_params=0.5)
    said = {(a.axis, a.silence) for a in plan.axes}
    known = {(a.axis, a.silence) for g in scores.units.groups for a in g.axes}
    assert said <= known
    assert {a.axis for a in plan.axes if a.silence is types.Silence.ZERO} == {a.axis for a in plan.axes if a.consumer}
    assert np.all([a.silence is not types.Silence.MINUS_INFINITY for a in plan.axes])


def test_what_is_printed_is_short(made: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]], fk.Scores]) -> None:
    scores = made[2]
    plan = scores.plan(keep_params=0.5)
    removed = plan.result["units_removed"]
    before, after = plan.result["params_before"], plan.result["params_after"]
    assert str(scores.units) == scores.units.explain()
    assert (
        str(scores) == "scores of 20 units in 2 groups of Sequential: wasserstein, taylor, residual, activation, l1, l2"
    )
    assert str(plan).startswith(f"plan for Sequential: {removed} of 20 units go, parameters {before} → {after}, FLOPs ")
    assert str(dataclasses.replace(plan, groups=(), result={})) == "plan for Sequential: 0 of 0 units go"
    report = fk.summarise(plan)
    assert str(report) == report.table()


def test_healed_measures_stand_beside_those_of_the_cut(
    made: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]], fk.Scores],
) -> None:
    plan = made[2].plan(keep_params=0.5)
    report = fk.summarise(plan, before={"loss": 1.0}, after={"loss": 2.0}, healed={"loss": 1.25})
    assert report.after == {"params": plan.result["params_after"], "flops": plan.result["flops_after"], "loss": 2.0}
    assert report.healed == {**report.after, "loss": 1.25}
    assert fk.summarise(plan, after={"loss": 2.0}).healed == {}


def test_a_report_takes_a_healed_column_later(
    made: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]], fk.Scores],
) -> None:
    model, loader, _ = made
    small, report = fk.prune(model, loader, nn.CrossEntropyLoss(), keep_params=0.7, keep_scores=True, progress=False)
    healed = report.with_healed({"perplexity": 8.5}, small=small)
    costs = {"params": sum(p.numel() for p in small.parameters()), "flops": report.after["flops"]}
    assert healed.healed == {**costs, "perplexity": 8.5}
    assert (healed.plan, healed.scores, healed.after) == (report.plan, report.scores, report.after)
    assert "healed" in healed.table()
    assert report.healed == {}
    assert report.with_healed({}).healed["params"] == report.after["params"]
    told = Healed(1, [1.0], 0.1, 1, 1, ())
    with pytest.raises(fk.InputError, match=r'healed is a Healed; expected .* such as \{"perplexity": 8\.5\}'):
        fk.summarise(report.plan, healed=told)


def test_a_folder_or_another_kind_of_file_is_named(
    made: tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]], fk.Scores], tmp_path: Path
) -> None:
    model, _, scores = made
    plan = scores.plan(keep_params=0.5)
    fk.save_pruned(fk.apply(model, plan), plan, tmp_path / "small")
    with pytest.raises(
        fk.ArtefactError, match=r"small is a folder; expected the file of a fairkern plan, such as plan"
    ):
        fk.Plan.load(tmp_path / "small")
    with pytest.raises(fk.ArtefactError, match="small is a folder; expected a safetensors file"):
        fk.Scores.load(tmp_path / "small")
    with pytest.raises(fk.ArtefactError, match=r"plan\.json is a fairkern plan, .*; expected fairkern scores"):
        fk.Scores.load(tmp_path / "small" / "plan.json")
    with pytest.raises(fk.ArtefactError, match=r"plan\.json is a file; expected a folder that save_pruned wrote"):
        fk.load_pruned(model, tmp_path / "small" / "plan.json")
    with pytest.raises(fk.ArtefactError, match="none is not there; expected a folder"):
        fk.load_pruned(model, tmp_path / "none")


def test_a_report_is_of_the_model_that_the_plan_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    units = fk.trace(model, torch.randn(2, 6))
    plan, other = units.plan(keep_params=0.6), units.plan(keep_params=0.4)
    assert fk.summarise(plan, small=fk.apply(model, plan)).after["params"] == plan.result["params_after"]
    with pytest.raises(fk.PlanMismatchError):
        fk.summarise(plan, small=fk.apply(model, other))


def test_rates_that_an_unsteady_clock_gives_are_rounded() -> None:
    torch.manual_seed(0)
    plan = fk.trace(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(2, 6)).plan(
        drop={"neuron": 4}
    )
    measures = {"before": {"tokens_per_second": 123.4}, "after": {"tokens_per_second": 187.6}}
    timing = {"before": {"p20": 1.0, "p50": 2.0, "p80": 3.0}, "steady": False, "bound": 1.25}
    text = fk.summarise(plan, **measures, timing=timing).table()
    assert "≈ 100" in text
    assert "≈ 200" in text
    assert "123.4" not in text
    assert "123.4" in fk.summarise(plan, **measures, timing={**timing, "steady": True}).table()
