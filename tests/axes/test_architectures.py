"""Attention as architectures write it: what decides which dimension of a view carries the unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.removals import random_removal
from tests.axes.harness import Net, assert_exact


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[.., heads, tokens, size] -> [.., tokens, heads · size], written out."""
    made = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return made.transpose(-3, -2).flatten(-2)


def divided(m: Net, x: Tensor) -> Tensor:
    """Attention over time for every place, then over places for every time: tokens are folded into the batch."""
    b, t, s, c = x.shape
    x = x + m.when[:, None] + m.where

    def one(x: Tensor, qkv: nn.Linear, out: nn.Linear) -> Tensor:
        q, k, v = qkv(x).reshape(*x.shape[:2], 3, m.heads, -1).permute(2, 0, 3, 1, 4)
        return out(attended(q, k, v))

    x = x.transpose(1, 2)
    x = x + one(x.reshape(b * s, t, c), m.a, m.b).reshape(b, s, t, c)
    x = x.transpose(1, 2)
    x = x + one(x.reshape(b * t, s, c), m.c, m.d).reshape(b, t, s, c)
    return m.last(m.norm(x))


def convolved(m: Net, x: Tensor) -> Tensor:
    """Queries, keys and values by grouped convolutions: positions of a head go together across the groups."""
    x = m.norm(m.first(x)).mT
    b, _, t = x.shape
    q, k, v = (conv(x).view(b, m.heads, -1, t).transpose(-2, -1) for conv in (m.a, m.b, m.c))
    return m.last(attended(q, k, v).mT)


def by_einsum(m: Net, x: Tensor) -> Tensor:
    """Weights [width, heads, size], contracted over heads and size at once on the way out."""
    q, k, v = (torch.einsum("btc,chd->bthd", x, w) for w in (m.q, m.k, m.v))
    weights = torch.einsum("bihd,bjhd->bhij", q + m.shift, k).softmax(-1)
    return m.last(torch.einsum("bthd,chd->btc", torch.einsum("bhij,bjhd->bihd", weights, v), m.o))


def heads_first(m: Net, x: Tensor) -> Tensor:
    """Weights [heads, width, size] and [heads, size, width]."""
    q, k, v = (torch.einsum("btc,hcd->bthd", x, w) for w in (m.q, m.k, m.v))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return m.last(torch.einsum("bthd,hdc->btc", torch.einsum("bhij,bjhd->bihd", weights, v), m.o).relu())


def shared_keys(m: Net, x: Tensor) -> Tensor:
    """Queries, keys and values in one projection, sliced at numbers; two query heads share a key head."""
    qkv, n = m.a(m.norm(x)), m.heads * 2
    q, k, v = (part.unflatten(-1, (-1, 2)).transpose(1, 2) for part in (qkv[..., :n], qkv[..., n:-4], qkv[..., -4:]))
    return m.last(x + m.b(attended(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))))


def one_key(m: Net, x: Tensor) -> Tensor:
    """All query heads share the key and the value head that lie behind them."""
    qkv = m.a(m.norm(x)).view(*x.shape[:2], m.heads + 2, 2).transpose(1, 2)
    return m.last(x + m.b(attended(qkv[:, :-2], qkv[:, [-2]], qkv[:, [-1]])))


def one_after_the_other(m: Net, x: Tensor) -> Tensor:
    """Branches whose weights lie in one parameter, [branches, out, in]."""
    gates = m.gate(x).softmax(-1)
    made = [F.linear(F.linear(x, m.up[i]).relu(), m.down[i]) for i in range(len(m.up))]
    return m.last(sum(gates[..., i : i + 1] * y for i, y in enumerate(made)))


def net(run: Callable[..., Tensor], seed: int = 0, **parts: Callable[[], nn.Module] | object) -> Net:
    torch.manual_seed(seed)
    made = {name: part() if callable(part) else part for name, part in parts.items()}
    return Net(run, **made).double().eval()


CASES: dict[str, tuple[Callable[[], Net], tuple[int, ...], dict[str, int]]] = {
    "attention over time and over space": (
        lambda: net(
            divided,
            heads=4,
            a=lambda: nn.Linear(8, 48),
            b=lambda: nn.Linear(16, 8),
            c=lambda: nn.Linear(8, 48),
            d=lambda: nn.Linear(16, 8),
            norm=lambda: nn.LayerNorm(8),
            last=lambda: nn.Linear(8, 3),
            when=lambda: nn.Parameter(torch.randn(6, 8)),
            where=lambda: nn.Parameter(torch.randn(9, 8)),
        ),
        (2, 6, 9, 8),
        {"a": 4, "c": 4},
    ),
    "heads in weights of three dimensions": (
        lambda: net(
            by_einsum,
            q=lambda: nn.Parameter(torch.randn(6, 4, 3)),
            k=lambda: nn.Parameter(torch.randn(6, 4, 3)),
            v=lambda: nn.Parameter(torch.randn(6, 4, 3)),
            o=lambda: nn.Parameter(torch.randn(6, 4, 3)),
            shift=lambda: nn.Parameter(torch.randn(4, 3)),
            last=lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
        ),
        (2, 5, 6),
        {"q": 4},
    ),
    "heads first in weights of three dimensions": (
        lambda: net(
            heads_first,
            q=lambda: nn.Parameter(torch.randn(4, 6, 3)),
            k=lambda: nn.Parameter(torch.randn(4, 6, 3)),
            v=lambda: nn.Parameter(torch.randn(4, 6, 3)),
            o=lambda: nn.Parameter(torch.randn(4, 3, 7)),
            last=lambda: nn.Linear(7, 3),
        ),
        (2, 5, 6),
        {"q": 4, "o": 7},
    ),
    "fused queries, keys and values of unequal number": (
        lambda: net(
            shared_keys,
            heads=4,
            a=lambda: nn.Linear(6, 16),
            b=lambda: nn.Linear(8, 6),
            norm=lambda: nn.LayerNorm(6),
            last=lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
        ),
        (2, 5, 6),
        {"a": 2},
    ),
    "one key behind all queries": (
        lambda: net(
            one_key,
            heads=5,
            a=lambda: nn.Linear(6, 14),
            b=lambda: nn.Linear(10, 6),
            norm=lambda: nn.LayerNorm(6),
            last=lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
        ),
        (2, 7, 6),
        {"a": 5},
    ),
    "branches in one parameter": (
        lambda: net(
            one_after_the_other,
            gate=lambda: nn.Linear(6, 3),
            up=lambda: nn.Parameter(torch.randn(3, 8, 6)),
            down=lambda: nn.Parameter(torch.randn(3, 5, 8)),
            last=lambda: nn.Linear(5, 3),
        ),
        (2, 7, 6),
        {"up": 8, "down": 5},
    ),
    "grouped convolutions, a group a head": (
        lambda: net(
            convolved,
            heads=4,
            first=lambda: nn.Linear(6, 32),
            a=lambda: nn.Conv1d(32, 32, 1, groups=4),
            b=lambda: nn.Conv1d(32, 32, 1, groups=4),
            c=lambda: nn.Conv1d(32, 32, 1, groups=4),
            norm=lambda: nn.LayerNorm(32),
            last=lambda: nn.Conv1d(32, 3, 1),
        ),
        (2, 5, 6),
        {"c": 8},  # the same position of every value head; heads read a stream that stays
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    build, shape, expected = CASES[name]
    model = build()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    units = fk.trace(model, x)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == expected
    for fraction in (0.3, 0.7):
        assert_exact(model, units, random_removal(units, fraction, seed=3), [x])
