"""Models without values, and tracing that has to end: what can be cut is the same, or an error says what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fairkern as fk
from fairkern.errors import InputError, TimeLimitError
from tests.axes.harness import Net, unit_map

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[3].weight = model[2].weight
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), model)


class Remembering(nn.Module):
    """Holds a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.mask = torch.ones(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.mask + torch.arange(8, device=x.device))


MODELS: dict[str, Any] = {
    "convolutional": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    ),
    "attention": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 16), nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
    ),
    "recurrent": lambda: Net(lambda m, x: m.b(m.a(x.flatten(2))[0]), a=nn.LSTM(64, 8, 2), b=nn.Linear(8, 2)),
    "tied": tied,
    "own tensor": Remembering,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_that_of_real_tensors(name: str) -> None:
    real = repr(unit_map(MODELS[name](), [X]))
    with torch.device("meta"):
        model = MODELS[name]()
    held = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert repr(unit_map(model, [X.to("meta")])) == real
    assert repr(unit_map(model, [X])) == real, "inputs with values will do"
    assert {id(t) for t in [*model.parameters(), *model.buffers()]} == held
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake, x = MODELS[name](), torch.randn(2, 3, 8, 8)
    assert repr(unit_map(fake, [x])) == real


def test_budget_and_cut_without_values() -> None:
    with torch.device("meta"):
        model = MODELS["convolutional"]()
    units = fk.trace(model, X, verify=False)
    assert not units.proven
    plan = units.plan(keep_params=0.6)
    small = fk.apply(model, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]
    assert plan.result["params_after"] <= 0.6 * plan.result["params_before"]
    assert small(X.to("meta")).shape == (2, 4, 4, 4)


def test_nothing_is_scored_without_values() -> None:
    with torch.device("meta"):
        model = MODELS["convolutional"]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = MODELS["convolutional"]()
    loader = [(X, torch.arange(2))]
    for given in (model, fake):
        units = fk.trace(given, X, verify=False)
        for stage in (
            lambda m: fk.score(m, loader, nn.CrossEntropyLoss(), units=units, progress=False),  # noqa: B023
            lambda m: fk.prune(m, loader, nn.CrossEntropyLoss(), keep_params=0.5, progress=False),
            lambda m: fk.recalibrate(m, loader),
            lambda m: fk.heal(m, MODELS["convolutional"](), loader, steps=1),
            lambda m: fk.heal(MODELS["convolutional"](), m, loader, steps=1),
        ):
            with pytest.raises(InputError, match=r"0\.weight has no values"):
                stage(given)


def test_no_proof_without_values() -> None:
    with torch.device("meta"):
        model = MODELS["convolutional"]()
    with pytest.raises(InputError, match=r"0\.weight has no values .*pass verify=False"):
        fk.trace(model, X)


@pytest.mark.parametrize("ask", [lambda x: x * x.sum().item(), lambda x: x[x > 0].sum() * x])
def test_a_model_that_asks_for_values(ask: Any) -> None:
    with torch.device("meta"):
        model = Net(lambda m, x: m.b(ask(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match=r"asks for values .*real tensors"):
        unit_map(model, [X])
    assert model.a.weight.is_meta


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as tracing sees it: a second passes with every forward pass of `slow`."""
    now = [0.0]
    monkeypatch.setattr("fairkern.deadline.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def slow(clock: list[float]) -> Net:
    def run(m: Net, x: Tensor) -> Tensor:
        clock[0] += 1
        m.runs += 1
        return m.b(m.a(x))

    return Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), runs=0)


def test_the_time_is_up(clock: list[float]) -> None:
    model = slow(clock)
    with pytest.raises(TimeLimitError, match=r"after 0\.5 s in aten::convolution in a; the model is as it was"):
        fk.trace(model, X, time_limit=0.5)
    assert model.runs == 0
    assert not model.a._forward_hooks


def test_the_proof_is_within_the_time(clock: list[float]) -> None:
    with pytest.raises(TimeLimitError, match="in proving groups"):
        fk.trace(slow(clock), X, time_limit=1.5)
    assert fk.trace(slow(clock), X, time_limit=60.0).proven


@pytest.mark.parametrize("limit", [0, -1, "long"])
def test_no_number_of_seconds(limit: Any) -> None:
    with pytest.raises(InputError, match=r"time_limit=.*; expected a number of seconds above 0"):
        fk.trace(MODELS["tied"](), X, time_limit=limit)
