"""`prune` evaluates what it was given and what it leaves, and tries further budgets from the same scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern import api

Made = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


@pytest.fixture
def made() -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    y = torch.arange(30) % 3
    return model, [(torch.randn(30, 6) + y[:, None], y) for _ in range(2)]


def cut(made: Made, **options: Any) -> tuple[nn.Module, fk.Report]:
    return fk.prune(made[0], made[1], nn.functional.cross_entropy, progress=False, **{"keep_params": 0.5, **options})


def counted(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters())


def test_before_and_after_are_measured(made: Made) -> None:
    data = made[1][0]

    def evaluate(model: nn.Module) -> dict[str, Tensor]:
        scored = model(data[0])
        return {
            "top1": (scored.argmax(1) == data[1]).double().mean(),
            "loss": nn.functional.cross_entropy(scored, data[1]),
        }

    small, report = cut(made, evaluate=evaluate)
    for model, said in ((made[0], report.before), (small, report.after)):
        assert {name: said[name] for name in ("top1", "loss")} == {n: v.item() for n, v in evaluate(model).items()}
    assert report.curve == ()
    assert report.stages["evaluate"] > 0
    assert cut(made, evaluate=counted)[1].after["counted"] == counted(small)


def test_without_it_a_report_says_nothing_of_it(made: Made) -> None:
    _, report = cut(made)
    assert "evaluate" not in report.stages
    assert report.before.keys() == {"params", "flops", "latency_ms"}


@pytest.mark.parametrize("options", [{}, {"compensate": "none"}, {"compensate": "least_squares", "inplace": True}])
def test_further_budgets_are_cut_as_each_would_be_alone(made: Made, options: dict[str, Any]) -> None:
    """One pass of scoring serves all of them, and what is returned is that of the budget that was asked for."""
    x, seen = made[1][0][0], []
    method = "tod" if options.get("compensate") == "none" else "global-residual"  # without second moments

    def evaluate(model: nn.Module) -> float:
        seen.append(model(x).detach())
        return model(x).square().sum().item()

    given = (copy.deepcopy(made[0]), made[1])
    small, report = cut(given, budgets=[0.9, 0.3, 0.5], evaluate=evaluate, **options)
    assert [row["budget"] for row in report.curve] == [0.9, 0.5, 0.3]
    for row in report.curve:
        alone, other = cut((copy.deepcopy(made[0]), made[1]), keep_params=row["budget"], evaluate=evaluate, **options)
        assert torch.equal(alone(x), next(given for given in seen if torch.equal(given, alone(x))))
        assert row["params"] == counted(alone) == other.after["params"]
        assert (row["flops"], row["evaluation"]) == (other.after["flops"], other.after["evaluation"])
        assert (row["by"], row["seed"], row["method"]) == ("keep_params", 0, method)
        assert row["seconds"] > 0
    assert report.after["params"] == report.curve[1]["params"] == counted(small)
    assert report.curve[1]["evaluation"] == report.after["evaluation"]


def test_data_are_scored_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    plain = api.capture.capture
    monkeypatch.setattr(api.capture, "capture", lambda *given: passes.append(1) or plain(*given))
    _, report = cut(made, budgets=np.linspace(0.3, 0.9, 4), compensate="none")
    assert len(passes) == 1
    assert [row["budget"] for row in report.curve] == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert {"params", "flops"} < report.curve[0].keys()
    assert "evaluation" not in report.curve[0]


def test_tolerances_and_milliseconds_are_budgets_too(made: Made) -> None:
    _, report = cut(made, keep_params=None, tod=0.2, budgets=(0.0, 0.4), compensate="none")
    assert [(row["by"], row["budget"], row["method"]) for row in report.curve] == [
        ("tod", share, "tod") for share in (0.4, 0.2, 0.0)
    ]
    _, report = cut(made, keep_params=None, keep_latency=1.0, budgets=(1.0,), compensate="none")
    assert [row["latency_ms"] > 0 for row in report.curve] == []  # of the same budget there is nothing further
    _, report = cut(made, keep_params=None, keep_flops=0.8, budgets=(0.6,), allocation="uniform", removal=_by_name)
    assert {row["method"] for row in report.curve} == {"uniform-_by_name"}


def _by_name(group: Any) -> list[float]:
    return list(range(group.total))


def test_the_curve_is_part_of_the_file(made: Made, tmp_path: Any) -> None:
    _, report = cut(made, budgets=(0.8,), evaluate=counted)
    report.save(tmp_path / "report.json")
    assert fk.Report.load(tmp_path / "report.json").curve == report.curve
    assert "0.8" in report.table()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": "0.9,0.7"}, r"budgets='0.9,0.7' is a str; expected numbers above 0, at most 1, for example"),
        ({"budgets": 0.9}, "budgets=0.9 is a float; expected numbers"),
        ({"budgets": ["50%"]}, r"budgets\[0\]='50%' is a str; expected numbers above 0"),
        ({"budgets": [0.9, 50]}, r"budgets\[1\]=50 is not a share"),
        ({"budgets": [0]}, r"budgets\[0\]=0 is not a share"),
        ({"budgets": [-0.5]}, "is not a share"),
        ({"budgets": [float("nan")]}, "is not finite"),
        ({"budgets": [None]}, r"budgets\[0\] is None"),
        ({"budgets": [0.9], "iterations": 2}, "iterations=2 scores anew after every step: leave one of them out"),
        ({"budgets": [0.9], "drop": {"neuron": 1}, "keep_params": None}, "drop= asks for numbers of units"),
        ({"evaluate": "accuracy"}, "evaluate='accuracy' is a str; expected a function of a model"),
        ({"evaluate": nn.Linear}, "evaluate is the class Linear"),
    ],
)
def test_what_is_wrong_with_them_is_said_before_anything_runs(made: Made, options: dict[str, Any], said: str) -> None:
    def untouchable() -> Iterator[Any]:
        pytest.fail("the loader was read before the options were")
        yield

    with pytest.raises(fk.InputError, match=said):
        cut((made[0], untouchable()), **options)


def test_a_wrong_evaluation_shows_before_anything_is_scored(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.capture, "capture", lambda *given: pytest.fail("scored"))
    with pytest.raises(fk.InputError, match="what evaluate gave is None"):
        cut(made, evaluate=lambda model: None)


def test_a_budget_that_cannot_be_met_shows_before_anything_is_cut(made: Made) -> None:
    calls = []
    with pytest.raises(fk.BudgetError):
        cut(made, budgets=(0.01,), max_remove=0.5, evaluate=lambda model: calls.append(1) or 1.0)
    assert len(calls) == 1
