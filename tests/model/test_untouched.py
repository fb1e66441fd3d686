"""What a forward pass does to a model is put back, whatever it is; what cannot be keeps nothing else from it."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.untouched import same_attributes, untouched
from tests.interrupted import Left


class Keeping(nn.Module):
    def __init__(self, do: Callable[[Any], object]) -> None:
        super().__init__()
        self.do = do
        self.register_buffer("early", torch.arange(4.0))
        self.register_buffer("late", torch.arange(6.0).view(2, 3))
        self.linear = nn.Linear(3, 3)
        self.table, self.order = {"a": 1, "b": 2}, OrderedDict(x=1, y=2)
        self.items, self.names = [1, 2, 3], {"one", "two"}
        self.counts, self.seen, self.history = defaultdict[str, int](int), Counter("here"), deque([0], maxlen=1)
        self.nested: dict[str, Any] = {"all": [(0, [1])]}
        self.pair = ([1], 2)

    def forward(self, x: Tensor) -> Tensor:
        self.early.add_(1)
        self.late.add_(1)
        self.linear.weight.requires_grad_(False)
        self.do(self)
        return self.linear(x)


def other_memory(model: Keeping) -> None:
    model.early.data = torch.from_numpy(np.zeros(2, np.float32))  # which cannot be resized


def resized(model: Keeping) -> None:
    model.late.resize_(5, 7)


def emptied(model: Keeping) -> None:
    model.early.resize_(0)


def taken_apart(model: Keeping) -> None:
    for held in (model.table, model.order, model.items, model.names):
        held.clear()
    model.added = 1
    del model._modules["linear"]
    model.linear = nn.Linear(3, 3)


def reordered(model: Keeping) -> None:
    model.table["a"] = model.table.pop("a")
    model.order.move_to_end("x")
    model._buffers["early"] = model._buffers.pop("early")
    model.items.reverse()


@pytest.mark.parametrize("do", [other_memory, resized, emptied, taken_apart, reordered])
def test_all_is_put_back(do: Callable[[Any], object]) -> None:
    model = Keeping(do)
    left = Left(model)
    with untouched(model):
        model(torch.ones(1, 3))
    assert left.differences() == []


def test_collections_in_collections_hold_what_they_held() -> None:
    def count(model: Any) -> None:
        model.counts["calls"] += 1
        model.seen["here"] += 1
        model.history.append(1)
        model.nested["all"][0][1].append(2)
        model.pair[0].clear()

    model = Keeping(count)
    names = ("counts", "seen", "history", "nested", "pair")
    before = [(getattr(model, name), repr(getattr(model, name))) for name in names]
    with same_attributes(model):
        model(torch.ones(1, 3))
        assert all(repr(getattr(model, name)) != was for name, (_, was) in zip(names, before, strict=True))
    assert [(getattr(model, name), repr(getattr(model, name))) for name in names] == before


@pytest.mark.parametrize("first", [0.0, float("nan")])
def test_tensors_that_are_no_buffers_have_their_values_again(first: float) -> None:
    def write(model: Any) -> None:
        model.running.add_(1)
        model.queue[0].mul_(2)

    model = Keeping(write)
    model.running, model.queue = torch.tensor([first, 2.0]), [torch.ones(3)]
    kept = [model.running, model.queue[0], model.linear.bias]
    before = [tensor.detach().clone() for tensor in kept]
    with same_attributes(model):
        model(torch.ones(1, 3))
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(kept, before, strict=True))
    assert model.running is kept[0]


def test_timing_leaves_a_model_and_random_states_as_they_were() -> None:
    model = Keeping(lambda model: model.items.append(float(torch.rand(()))))
    left = Left(model)
    fk.latency(model, torch.ones(1, 3))
    assert left.differences() == []


def test_what_cannot_be_put_back_keeps_nothing_else_from_it() -> None:
    model = Keeping(lambda model: model.shared.as_strided((1,), (1,)).fill_(7))
    model.register_buffer("first", torch.zeros(2))
    model.register_buffer(
        "shared", torch.zeros(1).expand(4)
    )  # four elements in one place, which torch does not write to
    model.register_buffer("last", torch.zeros(2))
    left = Left(model)
    with pytest.raises(RuntimeError, match="single memory location"), untouched(model):
        model(torch.ones(1, 3))
    assert left.differences() == ["0 shared"]


def test_nothing_is_missing_meanwhile() -> None:
    """Another thread may look at a module at any time."""
    model = Keeping(lambda _: None)
    seen: list[bool] = []

    class Watched:
        def __del__(self) -> None:  # while `added` is taken away
            seen.append("linear" in model._modules and "training" in vars(model))

    with same_attributes(model):
        model.added = Watched()
    assert seen == [True]
