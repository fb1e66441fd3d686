from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fairkern.model.own_modes import OwnMode, entered, left_out


class Ours(OwnMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Theirs(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def outside(x: Tensor) -> bool:
    with left_out():
        x.relu()
        return torch.overrides.has_torch_function((x,))


def test_ours_are_left_out_and_come_back() -> None:
    x = torch.zeros(2)
    assert not entered()
    with Ours() as first, Ours() as second:
        assert entered()
        assert not outside(x)
        assert entered()
        x.tanh()
        with pytest.raises(ZeroDivisionError), left_out():
            raise ZeroDivisionError
        x.sin()
    assert not entered()
    assert (first.seen, second.seen) == (["tanh", "sin"], ["tanh", "sin"])


def test_those_of_others_stay() -> None:
    x = torch.zeros(2)
    with Theirs(), Ours() as ours:
        assert outside(x)
        with Theirs():
            assert not entered()
            assert outside(x)
    assert ours.seen == ["relu"]
