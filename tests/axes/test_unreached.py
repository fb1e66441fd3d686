"""Code that the inputs did not reach, and numbers that no trace sees: what may be wrong stays, the rest is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.prove import difference
from tests.axes.harness import Net, randomised

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SCALE = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None, None]


def net(run: Callable[..., Any], **parts: Any) -> Net:
    torch.manual_seed(0)
    model = Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), c=nn.Conv2d(6, 2, 1), **parts)
    return randomised(model.double().eval())  # type: ignore[return-value]


def groups(units: fk.UnitMap) -> dict[str, str | None]:
    return {g.name: g.frozen for g in units.groups}


def assert_cut(model: nn.Module, units: fk.UnitMap, *inputs: Tensor, training: bool = False) -> nn.Module:
    plan = units.plan(keep_params=0.85)
    small = fk.apply(model, plan)
    for net_ in (model, small):
        net_.train(training)
    with plan.masked(model):
        for x in inputs:
            assert difference(model, small, x) < 1e-9
    model.eval()
    return small


def auxiliary(m: Net, x: Tensor) -> Any:
    h = m.a(x).relu()
    out = m.c(m.b(h).relu())
    return (out, m.aux(h)) if m.training else out


def test_an_auxiliary_head_follows_the_cut() -> None:
    model = net(auxiliary, aux=nn.Conv2d(8, 3, 1))
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    total = sum(p.numel() for p in model.parameters())
    assert any(n.startswith(f"27 of {total} parameters are reached in train mode only, first aux") for n in units.notes)
    assert_cut(model, units, X)
    assert_cut(model, units, X, training=True)


def hidden_from_training(m: Net, x: Tensor) -> Any:
    if m.training:
        raise RuntimeError("needs targets")
    return m.c(m.b(m.a(x).relu()).relu())


def test_a_head_that_train_mode_does_not_show_freezes_what_it_may_read() -> None:
    units = fk.trace(net(hidden_from_training, aux=nn.Conv2d(8, 3, 1)), X)
    assert groups(units) == {"b": None}
    frozen = {str(f.axis): f.reason for f in units.frozen}
    assert "may be read by aux" in frozen["a.weight:0"]
    assert "not reached" in frozen["aux.weight:0"]
    assert any("needs targets" in note for note in units.notes)


def scaled_by_a_captured_tensor(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * SCALE).relu())


def scaled_by_a_kept_number(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * m.scale).relu())


def scaled_by_the_width(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.c(m.b(x * x.shape[1] ** -0.5).relu())


def scaled_by_an_attribute(m: Net, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x) * m.a.out_channels**-0.5).relu())


def test_a_captured_tensor_freezes() -> None:
    units = fk.trace(net(scaled_by_a_captured_tensor), X)
    assert groups(units) == {"b": None}
    assert any("meets a fixed size" in f.reason for f in units.frozen if str(f.axis) == "a.weight:0")


def test_a_number_kept_since_construction_is_exact() -> None:
    model = net(scaled_by_a_kept_number, scale=8**-0.5)
    units = fk.trace(model, X)
    assert groups(units) == {"a": None, "b": None}
    assert_cut(model, units, X)


@pytest.mark.parametrize("run", [scaled_by_the_width, scaled_by_an_attribute])
def test_a_number_taken_from_the_width_freezes(run: Callable[..., Any]) -> None:
    model = net(run)
    units = fk.trace(model, X)
    assert groups(units).pop("b") is None
    assert "differs from masked" in str(groups(units)["a"])
    assert_cut(model, units, X)


def other_weights(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.c(m.d(h) if len(x) > 4 else m.b(h))


def mixed_channels(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.c(m.b(h - h.mean(1, keepdim=True) if len(x) > 4 else h).relu())


def test_a_branch_with_weights_that_was_not_taken_freezes() -> None:
    model = net(other_weights, d=nn.Conv2d(8, 6, 1))
    with pytest.raises(fk.InputError, match="no axis of this Net can be cut"):
        fk.trace(model, X)
    units = fk.trace(model, X, more=[LARGE])
    assert groups(units) == {"a": None, "b": None}
    assert_cut(model, units, X, LARGE)


def test_more_inputs_reach_a_branch_without_weights() -> None:
    model = net(mixed_channels)
    units = fk.trace(model, X, more=[LARGE])
    assert groups(units) == {"b": None}
    assert any("mean runs over it" in f.reason for f in units.frozen)
    assert_cut(model, units, X, LARGE)
