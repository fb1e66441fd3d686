"""What a user's own function measures: numbers by name, of a model that is as it was."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "given", [2, 2.0, np.float32(2), np.array(2), torch.tensor(2.0), torch.tensor(2, dtype=torch.int64)]
)
def test_a_number_of_any_library_is_the_evaluation(net: nn.Module, given: Any) -> None:
    assert fk.measured(lambda model: given, net) == {"evaluation": 2.0}
    assert fk.measured(lambda model: {"top1": given, "loss": 0.5}, net) == {"top1": 2.0, "loss": 0.5}
    assert type(fk.measured(lambda model: given, net)["evaluation"]) is float


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "what evaluate gave is None; expected a finite number, or numbers by name"),
        (math.nan, "what evaluate gave=nan is not finite"),
        (math.inf, "not finite"),
        (torch.tensor(math.nan), "not finite"),
        (True, "is a bool"),
        ("0.93", "is a str"),
        ((0.93, 0.1), "is a tuple; expected a finite number, or numbers by name"),
        (torch.ones(1), r"is a tensor of shape 1; expected .*take \.item\(\)"),
        (torch.ones(2, 3), "is a tensor of shape 2×3"),
        ({}, "without entries"),
        ({1: 2.0}, "a measure called 1; expected a name"),
        ({"": 2.0}, "expected a name"),
        ({"top1": None}, "the measure 'top1' that evaluate gave is None"),
        ({"top1": {"best": 1.0}}, "the measure 'top1' that evaluate gave is a dict"),
        ({"params": 3}, "called 'params', which reports say themselves: name it otherwise"),
        ({"method": 3}, "called 'method'"),
    ],
)
def test_what_is_no_number_is_refused(net: nn.Module, given: Any, said: str) -> None:
    with pytest.raises(fk.InputError, match=said):
        fk.measured(lambda model: given, net)


@pytest.mark.parametrize("evaluate", [None, 3, "accuracy", nn.CrossEntropyLoss])
def test_what_is_no_function_is_refused(net: nn.Module, evaluate: Any) -> None:
    with pytest.raises(fk.InputError, match=r"evaluate.*expected a function of a model that gives a number"):
        fk.measured(evaluate, net)


def test_what_it_raises_passes_through_and_all_is_as_it_was(net: nn.Module) -> None:
    before = _state(net)

    def broken(model: nn.Module) -> float:
        model.train()
        model(torch.randn(8, 4))
        torch.set_grad_enabled(False)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fk.measured(broken, net)
    assert torch.is_grad_enabled()
    _assert_same(net, before)


def test_model_and_process_are_as_they_were(net: nn.Module) -> None:
    """Run in train mode its running statistics move, it gets gradients, hooks and another place for its weights."""
    before, drawn = _state(net), torch.get_rng_state()

    def careless(model: nn.Module) -> float:
        assert not model.training
        model.train()
        for p in model.parameters():
            p.requires_grad_(False)
        model[0].weight.requires_grad_(True)
        model(torch.randn(8, 4)).sum().backward()
        model.register_forward_hook(lambda *_: None)
        model.double()
        random.random(), np.random.random()  # noqa: NPY002
        torch.set_grad_enabled(False)
        return float(torch.rand(()))

    first, second = (fk.measured(careless, net) for _ in range(2))
    assert first == second  # each begins with the same random states
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled()
    assert not net._forward_hooks
    _assert_same(net, before)


@pytest.mark.parametrize("on", [True, False])
def test_gradients_are_as_its_caller_has_them(net: nn.Module, on: bool) -> None:
    with torch.set_grad_enabled(on):
        assert fk.measured(lambda model: float(torch.is_grad_enabled()), net) == {"evaluation": float(on)}


def test_weights_that_it_trains_are_named(net: nn.Module) -> None:
    def heals(model: nn.Module) -> float:
        step = torch.optim.SGD([model[0].weight], lr=0.1)
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        step.step()
        return loss.item()

    with pytest.raises(fk.InputError, match=r"wrote to weights \(0.weight\) that are used afterwards.*deepcopy"):
        fk.measured(heals, net)
    assert fk.measured(lambda model: heals(copy.deepcopy(model)), net)["evaluation"] > 0


def test_of_a_model_without_values_too_but_not_without_shapes() -> None:
    assert fk.measured(lambda model: len(list(model.parameters())), nn.Linear(2, 3, device="meta"))["evaluation"] == 2
    with pytest.raises(fk.InputError, match="weight has no shape yet: run the lazy module once"):
        fk.measured(lambda model: 0.0, nn.LazyLinear(3))


def _state(model: nn.Module) -> dict[str, Any]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    held = {n: (t.data_ptr(), t.dtype, t.requires_grad, t.grad, t.detach().clone()) for n, t in tensors}
    return {**held, "modes": [m.training for m in model.modules()]}


def _assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = _state(model)
    assert after.keys() == before.keys()
    assert after.pop("modes") == before["modes"]
    for name, (*now, values) in after.items():
        *was, original = before[name]
        assert now == was, name
        assert torch.equal(values, original), name


def test_a_number_is_called_as_its_function_is(net: nn.Module) -> None:
    def top1(model: nn.Module) -> float:
        return 0.5

    def params(model: nn.Module) -> float:
        return 1.0

    def evaluate(model: nn.Module) -> float:
        return 2.0

    class Judge:
        def score(self, model: nn.Module) -> float:
            return 3.0

    assert fk.measured(top1, net) == {"top1": 0.5}
    assert [fk.measured(f, net) for f in (params, evaluate, Judge().score)] == [
        {"evaluation": value} for value in (1.0, 2.0, 3.0)
    ]
