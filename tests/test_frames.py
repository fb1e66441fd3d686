"""Scores and plans as data frames, and what is printed of them in one line."""

from __future__ import annotations

import builtins
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from tests import experts

Made = tuple[nn.Module, fk.Scores]


@pytest.fixture(scope="module")
def made() -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    loader = [(torch.randn(12, 6), torch.arange(12) % 3) for _ in range(2)]
    return model, fk.score(model, loader, nn.CrossEntropyLoss(), gram=True, progress=False)


def test_a_row_for_every_unit(made: Made) -> None:
    pytest.importorskip("pandas")
    scores = made[1]
    frame = scores.to_pandas()
    assert list(frame) == [*("group", "kind", "set", "unit"), *scores.signals, "params", "flops"]
    assert frame["group"].tolist() == ["0"] * 12 + ["2"] * 8
    assert frame["unit"].tolist() == [*range(12), *range(8)]
    assert set(frame["kind"]) == {"neuron"}
    assert not frame["set"].any()
    for name, (first, second) in scores.signals.items():
        assert np.array_equal(frame[name].to_numpy(), np.concatenate([first, second]))
    assert frame.groupby("group")["params"].first().tolist() == [6 + 1 + 8, 12 + 1 + 3]
    assert frame.groupby("group")["flops"].first().gt(0).all()


def test_a_plan_says_which_of_them_go(made: Made) -> None:
    pytest.importorskip("pandas")
    scores = made[1]
    plan = scores.plan(keep_params=0.5)
    frame = scores.to_pandas(plan)
    gone = frame[frame["removed"]]
    for group in plan.groups:
        assert gone[gone["group"] == group.name]["unit"].tolist() == group.removed.tolist()
    with pytest.raises(fk.InputError, match="plan= was not made from these scores of Sequential"):
        scores.to_pandas(dataclasses.replace(plan, groups=plan.groups[:1]))
    with pytest.raises(fk.InputError, match=r"plan=0\.5 is a float; expected a Plan"):
        scores.to_pandas(0.5)  # type: ignore[arg-type]


def test_a_plan_of_another_model_with_the_same_groups_is_refused(made: Made) -> None:
    pytest.importorskip("pandas")
    scores = made[1]
    plan = scores.plan(keep_params=0.5)
    name, shape = next(iter(plan.shapes.items()))
    with pytest.raises(fk.InputError, match="shapes of its tensors are others"):
        scores.to_pandas(dataclasses.replace(plan, shapes={**plan.shapes, name: (*shape[:-1], shape[-1] + 1)}))


def test_a_row_for_every_group(made: Made) -> None:
    pytest.importorskip("pandas")
    plan = made[1].plan(keep_params=0.5)
    frame = plan.to_pandas()
    assert list(frame) == [
        *("group", "kind", "sets", "units", "removed", "kept", "rate", "threshold", "removed_units"),
    ]
    for row, group in zip(frame.to_dict("records"), plan.groups, strict=True):
        assert (row["group"], row["units"], row["removed"]) == (group.name, group.total, group.removed.size)
        assert row["kept"] == group.total - group.removed.size
        assert row["rate"] == group.rate
        assert row["removed_units"] == tuple(group.removed.tolist())


def test_units_of_several_sets_are_told_apart() -> None:
    pytest.importorskip("pandas")
    model, (x, y) = experts.build(), experts.samples()
    units = fk.trace(model, x[:2], verify=False)
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, progress=False)
    plan = scores.plan(keep_params=0.7, allocation="uniform", removal="l1")
    frame = scores.to_pandas(plan)
    inner = frame[frame["kind"] == "expert neuron"]
    assert inner["set"].tolist() == [e for e in range(experts.EXPERTS) for _ in range(experts.INNER)]
    assert inner["unit"].tolist() == [*range(experts.INNER)] * experts.EXPERTS
    (group,) = [g for g in plan.groups if g.kind == "expert neuron"]
    for part, row in enumerate(group.removed):
        assert inner[inner["removed"] & (inner["set"] == part)]["unit"].tolist() == row.tolist()
    (named,) = plan.to_pandas().query("kind == 'expert neuron'")["removed_units"]
    assert inner["removed"].to_numpy().nonzero()[0].tolist() == list(named)


def test_units_that_were_not_scored_have_no_numbers(made: Made) -> None:
    pytest.importorskip("pandas")
    scores = made[1]
    half = dataclasses.replace(scores, signals={"taylor": (scores.signals["taylor"][0], np.zeros(0))})
    frame = half.to_pandas()
    assert frame["taylor"].notna().tolist() == [True] * 12 + [False] * 8


def test_without_pandas_the_extra_is_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *given: Any) -> Any:
        if name.partition(".")[0] == "pandas":
            raise ImportError("No module named 'pandas'")
        return plain(name, *given)

    monkeypatch.setattr(builtins, "__import__", without)
    scores = made[1]
    for table in (scores.to_pandas, scores.plan(keep_params=0.5).to_pandas):
        with pytest.raises(fk.InputError, match=r"needs pandas.*pip install 'fairkern\[research\]'"):
            table()


def test_one_line_for_each(made: Made) -> None:
    scores = made[1]
    plan = scores.plan(keep_params=0.5)
    report = fk.summarise(plan, before={"accuracy": 0.9}, after={"accuracy": 0.85})
    assert repr(scores.units) == "<UnitMap of Sequential: 20 units in 2 groups can be cut, proven>"
    assert repr(scores) == (
        "<Scores of Sequential: 20 units in 2 groups; wasserstein, taylor, residual, activation, l1, l2>"
    )
    assert repr(plan) == f"<{str(plan).replace('plan for', 'Plan for')}>"
    assert repr(plan).startswith("<Plan for Sequential: ")
    assert repr(report).startswith("<Report 'Sequential, pruned': parameters 215 → ")
    assert repr(report).endswith("accuracy 90.00 % → 85.00 %>")
    for held in (scores.units, scores, plan, report):
        assert len(repr(held)) < 200
        assert "\n" not in repr(held)
    assert "1 group " in repr(dataclasses.replace(scores.units, groups=scores.units.groups[:1]))
