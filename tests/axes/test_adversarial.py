"""Forward passes that lie in wait: every one is followed exactly, frozen with a reason, or caught by the proof."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fairkern.prove import prove
from tests.axes.harness import Case, Net, check_exact, check_groups, make, unit_map

FREE = {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"}


def conv(i: int, o: int, k: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)


def between(function: Any, **parts: Any) -> Case:
    return Case(lambda: Net(lambda m, x: m.b(function(m, m.a(x))), a=conv(3, 8), b=conv(8, 4), **parts), FREE)


def frozen(reason: str, function: Any, **parts: Any) -> Case:
    case = between(function, **parts)
    return Case(case.model, {}, {"a.weight:0": reason})


class Opaque:
    """An output of the model's own class."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Slotted:
    __slots__ = ("hidden",)

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def view_before_write(m: Net, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    view = out.flatten(2)
    out.add_(x)
    return x + view.sum((1, 2))[:, None, None, None]


def base_before_write(m: Net, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out.view(2, -1, 64).add_(x.flatten(2))
    return x * out.mean()


def uniform_made_uneven(m: Net, x: Tensor) -> Tensor:
    mask = x.new_ones(x.shape[1])
    mask[2:5] = 0
    return x * mask[:, None, None]


def uniform_written_by_select(m: Net, x: Tensor) -> Tensor:
    mask = x.new_ones(x.shape[1], 1, 1)
    mask[0] = 3
    return x * mask


def uniform_like_made_uneven(m: Net, x: Tensor) -> Tensor:
    mask = torch.ones_like(x)
    mask[:, 2:5] = 0
    return x * mask


def uniform_padded(m: Net, x: Tensor) -> Tensor:
    n = x.shape[1] // 2
    return x * F.pad(x.new_ones(n), (0, x.shape[1] - n))[:, None, None]


def view_written(m: Net, x: Tensor) -> Tensor:
    x.flatten(2)[:, :, 1:3].mul_(3)
    x.transpose(1, 3).add_(1)
    return x


def later_slice(m: Net, x: Tensor) -> Tensor:
    y = x * 1
    y[:, 2:4] += x[:, 4:6]
    return y


def data_of_activation(m: Net, x: Tensor) -> Tensor:
    y = x.data
    del x
    return y.relu()


def data_written(m: Net, x: Tensor) -> Tensor:
    x.data.mul_(torch.arange(8.0)[:, None, None])
    return x


def data_replaced(m: Net, x: Tensor) -> Tensor:
    y = torch.zeros(())
    y.data = x * 2
    return x + y


def cast_to_what_it_is(m: Net, x: Tensor) -> Tensor:
    m.b = m.b.to(x.dtype)
    return x.relu()


def data_sliced(m: Net, x: Tensor) -> Tensor:
    return x * x.data[:, :1]


def through_numpy(m: Net, x: Tensor) -> Tensor:
    return x * torch.from_numpy(np.tanh(x.numpy()))


def through_lists(m: Net, x: Tensor) -> Tensor:
    return x * torch.tensor(x.mean((0, 2, 3)).tolist()).double()[:, None, None]


def through_deepcopy(m: Net, x: Tensor) -> Tensor:
    return x + copy.deepcopy(x)


def through_item(m: Net, x: Tensor) -> Tensor:
    return x * x[0, 3, 0, 0].item()


def foreach(m: Net, x: Tensor) -> Tensor:
    torch._foreach_mul_([x], [torch.arange(8.0).double()[:, None, None]])
    return x


def own_function(m: Net, x: Tensor) -> Tensor:
    return Double.apply(x)  # type: ignore[no-any-return]


def weight_in_two_roles(m: Net, x: Tensor) -> Tensor:
    """`b.weight` as a convolution and, its rows summed, as a gate on what it reads."""
    return x * m.b.weight.mean(0)


def weight_as_data(m: Net, x: Tensor) -> Tensor:
    return F.conv2d(x, m.b.weight.data, m.b.bias.data)


def weight_written(m: Net, x: Tensor) -> Tensor:
    m.b.weight.data.clamp_(-0.2, 0.2)
    return x


def weight_masked(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.b.weight[:, 2:4] = 0
    return x


def memory(m: Net, x: Tensor) -> Tensor:
    m.bank[:] = x.mean((0, 2, 3))
    return x - m.bank[:, None, None]


@torch.inference_mode()
def without_autograd(m: Net, x: Tensor) -> Tensor:
    return F.layer_norm(F.conv2d(F.max_pool2d(x, 3, 1, 1), torch.eye(8).double()[:, :, None, None]), (8, 8))


@functools.cache
def script() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scripting is deprecated, not gone
        return torch.jit.script(plain)


def plain(x: Tensor) -> Tensor:
    return x.relu() * 2 + x.sigmoid()


def maxout(m: Net, x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 2, 8, 8).amax(2).repeat(1, 2, 1, 1)


def bilinear_pool(m: Net, x: Tensor) -> Tensor:
    v = x.mean((2, 3))
    return x * (v[:, :, None] * v[:, None, :]).flatten(1).amax(1)[:, None, None, None]


def through_gradients(m: Net, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad((y**3).amax((0, 2, 3)).prod(), y)
    return x + g


def subclassed(m: Net, x: Tensor) -> Tensor:
    return x + x.as_subclass(Tagged).relu().as_subclass(Tensor)


def read_as_subclass(m: Net, x: Tensor) -> Tensor:
    alias = x.as_subclass(Tensor)
    return x + alias.amax((1, 2, 3), keepdim=True)


class Tagged(Tensor):
    pass


def kept_view(m: Net) -> Net:
    m.double()
    m.kept = m.b.weight.detach()[:, :4]
    return m


# What the trace sees by itself.
CASES = {
    "view taken before a write": frozen("runs over it", view_before_write),
    "base read after a write through a view": frozen("runs over it", base_before_write),
    "uniform made uneven by a slice": frozen("meets a fixed size", uniform_made_uneven),
    "uniform made uneven by a select": frozen("meets a fixed size", uniform_written_by_select),
    "ones_like made uneven": frozen("is sliced", uniform_like_made_uneven),
    "uniform padded": frozen("meets a fixed size", uniform_padded),
    "view written": between(view_written),
    "slice added to": frozen("is sliced", later_slice),
    "data of an activation": between(data_of_activation),
    "data written": frozen("meets a fixed size", data_written),
    "a module cast to what it is": between(cast_to_what_it_is),
    "data replaced": frozen("in place of a tensor's data", data_replaced),
    "data sliced": frozen("is sliced", data_sliced),
    "through numpy": frozen("taken out of torch by numpy", through_numpy),
    "through lists": frozen("taken out of torch by tolist", through_lists),
    "through deepcopy": between(through_deepcopy),
    "through item": frozen("is selected", through_item),
    "list of tensors written": frozen("read or written whole by _foreach_mul_", foreach),
    "own autograd function": between(own_function),
    "in inference mode": frozen("contracted with a tensor of fixed size", without_autograd),
    "scripted": between(lambda m, x: script()(x)),
    "under vmap": between(lambda m, x: torch.vmap(lambda v: v * 2 + 1)(x)),
    "checkpointed": between(lambda m, x: checkpoint(lambda v: v.relu() * 2, x, use_reentrant=False)),
    "maxout": Case(between(maxout).model, {"a": "4: a.bias:0x2 a.weight:0x2 b.weight:1*x2 @ bx2"}),
    "bilinear pooling": frozen("", bilinear_pool),
    "through gradients": frozen("", through_gradients),
    "tensor subclass": frozen("", subclassed),
    "read under another identity": frozen("no operator made|leaves the trace|runs over it", read_as_subclass),
    "forward called by hand": Case(
        lambda: Net(lambda m, x: m.b.forward(m.a(x)), a=conv(3, 8), b=conv(8, 4)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b.weight"},
    ),
    "inference mode": Case(
        lambda: Net(torch.inference_mode()(lambda m, x: m.b(m.a(x).relu())), a=conv(3, 8), b=conv(8, 4)), FREE
    ),
    "functional call": Case(
        lambda: Net(
            lambda m, x: functional_call(m.b, dict(m.b.named_parameters()), (m.a(x),)), a=conv(3, 8), b=conv(8, 4)
        ),
        FREE,
    ),
    "weight read as a gate": between(weight_in_two_roles),
    "weight's data as weight": Case(
        lambda: Net(lambda m, x: m.c(weight_as_data(m, m.a(x))), a=conv(3, 8), b=conv(8, 4), c=conv(4, 2)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b.weight", "b": "4: b.bias:0 b.weight:0 c.weight:1* @ c"},
    ),
    "weight clamped in forward": frozen("b.weight is written to", weight_written),
    "weight masked in forward": frozen("b.weight is written to|is sliced", weight_masked),
    "memory in a buffer": frozen("bank is written to", memory, bank=torch.zeros(8)),
    "view of a parameter kept since construction": Case(
        lambda: kept_view(Net(lambda m, x: m.b(m.a(x)) + m.kept.sum(), a=conv(3, 8), b=conv(8, 4))),
        {},
        {"a.weight:0": "seen again in a tensor that no operator made"},
    ),
    "opaque output": Case(
        lambda: Net(lambda m, x: [m.b(h := m.a(x)), Opaque(h)], a=conv(3, 8), b=conv(8, 4)),
        {},
        {"a.weight:0": "model's output"},
    ),
    "slotted output": Case(
        lambda: Net(lambda m, x: (m.b(h := m.a(x)), {"more": Slotted(h)}), a=conv(3, 8), b=conv(8, 4)),
        {},
        {"a.weight:0": "model's output"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def by_length(m: Net, x: Tensor) -> Tensor:
    return x * x.shape[1] ** -0.5


def hard_slice_of_space(m: Net, x: Tensor) -> Tensor:
    return x.reshape(2, 8, -1)[:, :, :32].reshape(2, -1, 8, 4)


def hard_split(m: Net, x: Tensor) -> Tensor:
    return torch.cat([part.relu() if i % 2 else part for i, part in enumerate(x.split(4, 1))], 1)


def fixed_groups(m: Net, x: Tensor) -> Tensor:
    return x.view(2, 4, -1, 8, 8).transpose(1, 2).reshape(2, -1, 8, 8)


def counted(m: Net, x: Tensor) -> Tensor:
    return x + x.new_ones(x.shape).sum(1, keepdim=True)


def branch_on_size(m: Net, x: Tensor) -> Tensor:
    return x.relu() if x.shape[1] == 8 else x.sigmoid()


def cached(m: Net, x: Tensor) -> Tensor:
    if "scale" not in m.cache:
        m.cache["scale"] = torch.rand(8, 1, 1).to(x)
    return x * m.cache["scale"]


# What only running the cut model shows.
UNSEEN = {
    "scaled by its length": by_length,
    "view of a fixed size, then a slice": hard_slice_of_space,
    "split into parts of a fixed size": hard_split,
    "ones counted": counted,
    "branch on a size": branch_on_size,
    "fixed number of groups": fixed_groups,
}


@pytest.mark.parametrize("name", UNSEEN)
def test_the_proof_catches(name: str) -> None:
    case = between(UNSEEN[name])
    model, runs = make(case)
    units = unit_map(model, runs)
    failed = prove(model, units, runs[0])
    assert list(failed) == list(units.prunable)
    assert units.prunable, "seen by the trace: belongs in the other table"


def test_a_cache_filled_while_tracing_is_emptied() -> None:
    model, runs = make(frozen("", cached, cache={}))
    assert not unit_map(model, runs).prunable
    assert model.cache == {}


def test_custom_operators_are_not_taken_for_aten() -> None:
    """An operator named like one of ATen's, in another namespace, has no rule."""
    library = torch.library.Library("axes_test", "DEF")
    library.define("relu6(Tensor x) -> Tensor")
    library.define("mean(Tensor x) -> Tensor")
    library.impl("mean", lambda x: x.flip(1) * 2, "CompositeExplicitAutograd")
    model, runs = make(between(lambda m, x: torch.ops.axes_test.mean(x)))
    units = unit_map(model, runs)
    assert not units.prunable
    assert any("axes_test.mean" in f.reason for f in units.frozen)
    assert any("axes_test.mean" in note for note in units.notes)
