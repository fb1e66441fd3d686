"""A model that is cut in place while optimizers hold its parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.integrations.optimizers import cut_in_place

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 6, 6, generator=generator), torch.arange(12) % 3


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = batch()
    model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def stays(plan: fk.Plan, name: str, tensor: Tensor) -> Tensor:
    """By the plan alone, one axis after the other."""
    for cut in plan.axes:
        if cut.axis.tensor == name:
            left = np.delete(np.arange(cut.length), cut.removed)
            tensor = tensor.index_select(cut.axis.dim, torch.from_numpy(left))
    return tensor


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_is_cut_as_its_parameters_are(kind: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(2):
        step(model, optimizer)
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    objects = dict(model.named_parameters())
    before = {
        name: {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
        for name, p in objects.items()
    }
    small = fk.apply(model, plan)
    followed = cut_in_place(model, plan, [optimizer])
    assert followed.added == followed.anew == ()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))
    for name, parameter in model.named_parameters():
        assert parameter is objects[name]
        assert optimizer.state[parameter].keys() >= before[name].keys()
        for key, value in before[name].items():
            expected = value if value.numel() == 1 else stays(plan, name, value)
            assert torch.equal(optimizer.state[parameter][key], expected)
            assert expected.numel() == 1 or expected.shape == parameter.shape
    step(model, optimizer)


def test_a_step_after_the_cut_is_that_of_an_optimizer_that_is_made_anew() -> None:
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step(model, optimizer)
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    cut_in_place(model, plan, [optimizer])
    other = copy.deepcopy(model)
    fresh = OPTIMIZERS["adam"](other.parameters())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_model_becomes_the_compensated_one() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer)
    small, report = fk.prune(model.eval(), [batch()], nn.functional.cross_entropy, keep_params=0.4, progress=False)
    plan = report.plan
    assert plan is not None
    followed = cut_in_place(model, plan, [optimizer], like=small)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in small.state_dict().items())
    assert list(model.state_dict()) == list(small.state_dict())
    assert set(followed.added) == small.state_dict().keys() - plan.shapes.keys()
    x, _ = batch()
    assert torch.equal(model.eval()(x), small.eval()(x))


def test_state_of_another_shape_starts_anew_and_is_said() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer)
    weight = model.get_parameter("4.weight")
    optimizer.state[weight]["row"] = torch.ones(len(weight))
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    assert cut_in_place(model, plan, [optimizer]).anew == ("4.weight",)
    assert not optimizer.state[weight]
    step(model, optimizer)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_parameters_that_go_whole_leave_their_optimizer() -> None:
    torch.manual_seed(0)
    model = Blocks()
    optimizer = torch.optim.Adam([{"params": list(model.named_parameters())}])
    x, y = torch.randn(12, 8), torch.arange(12) % 3
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    kept = {id(p): optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    plan = fk.trace(model.eval(), x[:2], depth=True).plan(drop={"branch": 2})
    cut_in_place(model, plan, [optimizer])
    assert 0 < len(optimizer.state) < len(kept)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert optimizer.state.keys() == set(model.parameters())
    assert all(torch.equal(optimizer.state[p]["exp_avg"], kept[id(p)]) for p in model.parameters())


def test_what_cannot_be_cut_is_refused_before_anything_is() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer)
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(fk.InputError, match="optimizers"):
        cut_in_place(model, plan, [model])  # type: ignore[list-item]
    with pytest.raises(fk.InputError, match="the model itself"):
        cut_in_place(model, plan, [optimizer], like=model)
    with pytest.raises(fk.PlanMismatchError):
        cut_in_place(model, plan, [optimizer], like=net())
    with pytest.raises(fk.PlanMismatchError):
        cut_in_place(nn.Sequential(nn.Linear(3, 3)), plan, [optimizer])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    cut_in_place(model, plan, [optimizer])
    with pytest.raises(fk.PlanMismatchError, match="already"):
        cut_in_place(model, plan, [optimizer])


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = net()
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    before = [p.shape for p in model.parameters()]
    with pytest.raises(fk.InputError, match="this SGD holds no parameter of the model"):
        cut_in_place(model, plan, [torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)])
    assert [p.shape for p in model.parameters()] == before


def test_what_is_kept_of_all_parameters_in_a_row_starts_anew() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = batch()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = float(optimizer.step(closure))
    plan = fk.trace(model.eval(), batch()[0][:2]).plan(keep_params=0.5)
    followed = cut_in_place(model, plan, [optimizer])
    assert set(followed.anew) == {name for name, _ in model.named_parameters()}
    first = float(optimizer.step(closure))
    assert float(optimizer.step(closure)) < first
    assert before > 0
