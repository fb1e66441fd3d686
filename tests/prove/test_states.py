"""Models whose code asks whether there are gradients are proven with and without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairkern.prove import prove
from fairkern.prove.states import states_of
from tests.compact.handmade import units_of

UNITS = {"hidden": (16, "first.weight:0 first.bias:0 second.weight:1>")}
SIZES = {"first.out_features": "hidden", "second.in_features": "hidden"}


def average(hidden: Tensor) -> Tensor:
    """For which silencing is not removing."""
    return hidden - hidden.mean(-1, keepdim=True)


def helper(hidden: Tensor) -> Tensor:
    return hidden if torch.is_grad_enabled() else average(hidden)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(torch.relu(self.first(x))))


class Plain(Layers):
    """Does not ask."""


class WrongWithout(Layers):
    def between(self, hidden: Tensor) -> Tensor:
        return helper(hidden)


class WrongWith(Layers):
    def between(self, hidden: Tensor) -> Tensor:
        return average(hidden) if torch.is_grad_enabled() else hidden


def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def inner(*args: Any) -> Tensor:
        assert torch.is_grad_enabled() in (True, False)
        return function(*args)

    return inner


class Decorated(Layers):
    """What its decorators ask for is not its own affair (transformers' look whether checkpoints make sense)."""

    @decorated
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class WrongOnTheFastPath(Layers):
    def between(self, hidden: Tensor) -> Tensor:
        return average(hidden) if torch.backends.mha.get_fastpath_enabled() else hidden


@pytest.mark.parametrize(
    ("kind", "states", "fails"),
    [
        (Plain, 1, False),
        (Decorated, 1, False),
        (WrongWithout, 2, True),
        (WrongWith, 2, True),
        (WrongOnTheFastPath, 2, True),
    ],
)
def test_what_fails_in_one_state_fails(kind: Callable[[], nn.Module], states: int, fails: bool) -> None:
    torch.manual_seed(0)
    model = kind()
    assert len(states_of(model)) == states
    assert bool(prove(model, units_of(model, UNITS, SIZES), torch.randn(4, 6))) == fails
    assert all(p.grad is None for p in model.parameters())


def test_the_fast_path_is_as_it_was() -> None:
    torch.manual_seed(0)
    model = WrongOnTheFastPath()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert prove(model, units_of(model, UNITS, SIZES), torch.randn(4, 6))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_torch_s_attention_is_left_out_and_its_encoder_is_not() -> None:
    assert len(states_of(nn.ModuleList([nn.MultiheadAttention(8, 2), nn.LSTM(3, 3), nn.Conv2d(1, 1, 1)]))) == 1
    assert len(states_of(nn.TransformerEncoderLayer(8, 2, 8))) == 2
