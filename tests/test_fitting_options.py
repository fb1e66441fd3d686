"""What `prune` chooses itself fits what it is given; where that contradicts itself, a remedy is named that works."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern import report

Setup = tuple[nn.Module, list[Any], Any, fk.UnitMap, Any]


class LanguageModel(nn.Module):
    """Without classes: a target for every place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


def language() -> Setup:
    torch.manual_seed(0)
    model, ids = LanguageModel().eval(), [torch.randint(11, (4, 5)) for _ in range(2)]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())

    return model, [(i, i) for i in ids], loss, fk.trace(model, ids[0][:2]), lambda batch: batch[0][:, 0] % 2


def images() -> Setup:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).eval()
    x, y = torch.randn(12, 2, 6, 6), torch.arange(12) % 3
    data = [(x[:6], y[:6]), (x[6:], y[6:])]
    return model, data, nn.functional.cross_entropy, fk.trace(model, x[:2]), lambda batch: batch[1]


OPTIONS: dict[str, tuple[Any, ...]] = {
    "compensate": (None, "none", "mean", "least_squares", "sequential", "joint"),
    "biases": ("auto", True, False),
    "allocation": (None, "tod", "uniform", "global", "normalized", "priced"),
    "target": ("tod", "keep_params", "keep_flops", "drop"),
    "class_of": (None, False, "given"),
    "recipe": ("default", "paper"),
    "removal": (None, "taylor", "wasserstein", "residual", "random"),
    "protect": ("taylor", "wasserstein", "residual"),
    "gram": (None, False, True),
    "reduction": (None, "per_class"),
    "loader": ("list", "iterator"),
    "inplace": (False, True),
    "serve": (None, None, None, "hf"),
}


def combinations(seed: int, most: int) -> Iterator[dict[str, Any]]:
    every = list(itertools.product(*OPTIONS.values()))
    for values in random.Random(seed).sample(every, most):
        yield dict(zip(OPTIONS, values, strict=True))


def prune(setup: Setup, asked: dict[str, Any], units: fk.UnitMap | None = None) -> fk.Report:
    model, data, loss, traced, class_of = setup
    options = {k: v for k, v in asked.items() if k not in ("target", "loader") and v is not None}
    if options.get("class_of") == "given":
        options["class_of"] = class_of
    if options.get("inplace"):
        model = fk.apply(model, traced.plan(keep_params=1.0))
    shares = {"tod": 0.3, "drop": {traced.groups[traced.prunable[0]].kind: 2}}
    options |= {asked["target"]: shares.get(asked["target"], 0.7)}
    given = iter(data) if asked["loader"] == "iterator" else data
    kept = {"units": traced if units is None else units, "progress": False, "projections": 2, "samples_per_class": 4}
    return fk.prune(model, given, loss, **options, **kept)[1]


def refusal(setup: Setup, asked: dict[str, Any]) -> str:
    """Why this is not done; empty if it is."""
    try:
        prune(setup, asked)
    except fk.InputError as error:
        return str(error)
    return ""


def followed(asked: dict[str, Any], error: str) -> dict[str, Any]:
    """What was asked, with the remedy that the error names."""
    _, _, remedy = error.partition(": ")
    again = dict(asked)
    leave_out = re.search(r"leave out (\w+)=", remedy)
    if leave_out:
        again[leave_out[1]] = None
    elif "keep_params=" in error:
        again["target"] = "keep_params"
    elif "re-iterable" in remedy:
        again["loader"] = "list"
    else:
        offered = dict(re.findall(r"(\w+)='(\w+)'", remedy))
        assert offered, error
        again |= offered
    return again


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clocks: they take most of the time."""
    monkeypatch.setattr(report, "latencies_ms", lambda models, *_, **__: [1.0] * len(models))
    monkeypatch.setattr(report, "timed", lambda *_, **__: {"before": {"p50": 1.0}, "steady": True, "passes": 1})
    both = {"before": {"p50": 1.0}, "after": {"p50": 1.0}, "steady": True}
    monkeypatch.setattr(report, "compared", lambda *_, **__: dict(both))


@pytest.mark.parametrize("made", [language, images])
@pytest.mark.usefixtures("quick")
def test_every_combination_runs_or_names_a_remedy_that_works(made: Any) -> None:
    setup = made()
    refused = 0
    for asked in combinations(seed=0, most=40):
        for _ in range(6):  # as many things as contradict each other
            error = refusal(setup, asked)
            if not error:
                break
            refused += 1
            again = followed(asked, error)
            assert again != asked, error
            asked = again
        else:
            pytest.fail(f"no end of remedies: {asked}")
    assert refused > 20


@pytest.mark.parametrize("compensate", [None, "none", "mean", "least_squares", "sequential"])
@pytest.mark.parametrize("allocation", [None, "uniform", "global", "normalized", "priced"])
@pytest.mark.usefixtures("quick")
def test_a_language_model_is_asked_for_no_classes(compensate: str | None, allocation: str | None) -> None:
    model, data, loss, units, _ = language()
    options = {"compensate": compensate, "allocation": allocation, "keep_params": 0.8, "progress": False}
    _, made = fk.prune(model, data, loss, units=units, **options)
    assert made.choices["request"]["removal"] == "residual"
    assert made.choices["request"]["allocation"] == (
        allocation or "global"
    )  # its stream can be cut too, so costs multiply
    assert made.choices["compensation"] == (compensate or "sequential")


def test_scores_without_classes_and_moments_plan_by_the_taylor_signal() -> None:
    model, data, loss, units, _ = language()
    scores = fk.score(model, data, loss, units=units, class_of=False, progress=False)
    plan = scores.plan(keep_params=0.8)
    assert (plan.request["allocation"], plan.request["removal"]) == ("global", "taylor")
    assert scores.plan(keep_params=0.8, allocation="uniform").request["removal"] == "taylor"
    with pytest.raises(fk.InputError, match="or score with classes"):
        scores.plan(tod=0.2)
    scores.plan(tod=0.2, removal="taylor")


def test_scores_are_kept_where_they_are_asked_for() -> None:
    model, data, loss, units, _ = images()
    options = {"units": units, "keep_params": 0.8, "progress": False}
    assert fk.prune(model, data, loss, **options)[1].scores is None
    _, made = fk.prune(model, data, loss, **options, keep_scores=True)
    assert made.scores is not None
    assert made.plan is not None
    again = made.scores.plan(keep_params=0.8)
    assert [g.removed.tolist() for g in again.groups] == [g.removed.tolist() for g in made.plan.groups]
