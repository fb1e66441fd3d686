"""Operators that work position by position: what meets is cut together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.axes.harness import Case, Net, check_exact, check_groups


def conv(i: int, o: int, k: int = 1, **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)  # type: ignore[arg-type]


def one(function: object) -> Case:
    """A function between two convolutions that keeps every channel to itself."""
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=conv(3, 8), b=conv(8, 4)),  # type: ignore[operator]
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"b.weight:0": "output", "a.weight:1": "fixed size"},
    )


def two(function: object, **parts: object) -> Case:
    """A function of two branches and the network's own parts before a shared consumer."""
    return Case(
        lambda: Net(lambda m, x: m.c(function(m, m.a(x), m.b(x))), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4), **parts),  # type: ignore[operator]
        {"a": "8: a.bias:0 a.weight:0 b.bias:0 b.weight:0 c.weight:1* @ c"},
    )


def relu_in_place_then_add(m: Net, a: Tensor, b: Tensor) -> Tensor:
    F.relu_(a)
    a += b
    return a.mul_(0.5)


def into_slices_of_the_whole(m: Net, a: Tensor, b: Tensor) -> Tensor:
    a[:, :, ::2] = b[:, :, ::2]
    return a


def copied(m: Net, a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(a)
    out.copy_(a)
    return out + b


UNARY = {
    "relu": F.relu,
    "relu_": F.relu_,
    "relu6": F.relu6,
    "leaky relu": F.leaky_relu,
    "leaky relu in place": lambda x: F.leaky_relu_(x),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu_": lambda x: F.silu(x, inplace=True),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardswish_": lambda x: F.hardswish(x, inplace=True),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "hardtanh_": F.hardtanh_,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "power": lambda x: x**2 + x.abs().sqrt(),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_": lambda x: x.clamp_(min=0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked fill": lambda x: x.masked_fill(x < 0, 0.0),
    "dropout in eval mode": lambda x: F.dropout(x, training=False),
    "scalar arithmetic": lambda x: (2 - x) / 3,
    "detach and data": lambda x: x.detach() + x.data,
    "clone": lambda x: x.clone(memory_format=torch.contiguous_format),
    "cast": lambda x: x.float().double(),
    "zeros like": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max of two": lambda x: torch.max(x, -x),
    "no_grad": torch.no_grad()(lambda x: x * 2),
}

CASES = {
    **{name: one(function) for name, function in UNARY.items()},
    "add": two(lambda m, a, b: a + b),
    "multiply": two(lambda m, a, b: a * b),
    "in place": two(relu_in_place_then_add),
    "lerp": two(lambda m, a, b: torch.lerp(a, b, 0.3)),
    "addcmul": two(lambda m, a, b: torch.addcmul(a, a, b)),
    "maximum": two(lambda m, a, b: torch.maximum(a, b)),
    "copied": two(copied),
    "copied into spatial slices": two(into_slices_of_the_whole),
    "out=": two(lambda m, a, b: torch.add(a, b, out=torch.empty(0, dtype=a.dtype))),
    "gate": two(lambda m, a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True))),
    "broadcast from the left": two(lambda m, a, b: a.permute(0, 2, 3, 1).add(b.mean((0, 2, 3))).permute(0, 3, 1, 2)),
    "parameter, broadcast": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x) * m.scale + m.shift[:, None, None]),
            a=conv(3, 8),
            b=conv(8, 4),
            scale=nn.Parameter(torch.randn(8, 1, 1)),
            shift=nn.Parameter(torch.randn(8)),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* scale:0 shift:0 @ b"},
    ),
    "buffer met pointwise": Case(
        lambda: Net(lambda m, x: m.b(m.a(x) - m.mean), a=conv(3, 8), b=conv(8, 4), mean=torch.randn(1, 8, 1, 1)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* mean:1 @ b"},
    ),
    "prelu per channel": Case(
        lambda: nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 4)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:0 2.weight:1* @ 2"},
    ),
    "prelu, one slope": Case(
        lambda: nn.Sequential(conv(3, 8), nn.PReLU(), conv(8, 4)), {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2"}
    ),
    "prelu after linear": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 4)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:0 2.weight:1* @ 2"},
        shape=(4, 5),
    ),
    "glu": Case(
        lambda: nn.Sequential(conv(3, 8), nn.GLU(1), conv(4, 4)), {"0": "4: 0.bias:0x2 0.weight:0x2 2.weight:1* @ 2"}
    ),
    "captured constant": Case(
        lambda: Net(lambda m, x: m.b(m.a(x) * m.held[0]), a=conv(3, 8), b=conv(8, 4), held=[torch.rand(8, 1, 1)]),
        {},
        {"a.weight:0": "meets a fixed size in mul", "b.weight:1": "meets a fixed size"},
    ),
    "constant made in forward": Case(
        lambda: Net(lambda m, x: m.b(m.a(x) + torch.arange(8.0)[:, None, None]), a=conv(3, 8), b=conv(8, 4)),
        {},
        {"a.weight:0": "meets a fixed size in add"},
    ),
    "noise": Case(
        lambda: Net(lambda m, x: m.b(m.a(x) + 0 * torch.randn(8, 1, 1)), a=conv(3, 8), b=conv(8, 4)),
        {},
        {"a.weight:0": "meets a fixed size in add"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])
