"""Tensors filled with one value: each has one length, which all that it meets has to keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.axes.harness import assert_exact

WIDTH, HEADS, SIZE = 12, 4, 3
X = torch.randn(2, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Makes a bias for its scores where it is given none, and hands it on."""

    def __init__(self, fill: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.heads, self.fill, self.out = HEADS, fill, nn.Linear(HEADS * SIZE, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.num_buckets = HEADS * SIZE  # as large as the projections, and nothing to do with them

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, SIZE).transpose(1, 2) for part in (self.q, self.k, self.v))
        if bias is None:
            bias = self.fill(x, self.heads)
        far = (torch.arange(n)[:, None] - torch.arange(n)).abs() >= self.num_buckets
        mixed = (q @ k.transpose(-2, -1) + (bias - far.to(x.dtype))).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, -1)), bias


class Encoder(nn.Module):
    def __init__(self, fill: Callable[[Tensor, int], Tensor], shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Attention(fill) for _ in range(2))
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2)), nn.Linear(WIDTH, 3)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        bias = None
        for norm, layer in zip(self.norms, self.layers, strict=True):
            made, bias = layer(norm(x), bias if self.shared else None)
            x = x + made
        return self.head(x)


FILLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "zeros": lambda x, heads: torch.zeros(1, heads, x.shape[1], x.shape[1], dtype=x.dtype),
    "ones": lambda x, heads: x.new_ones(x.shape[0], heads, x.shape[1], 1),
    "expanded": lambda x, heads: x.mean((1, 2))[:, None, None, None].expand(-1, heads, -1, -1),
    "repeated": lambda x, heads: x.mean((1, 2))[:, None, None, None].repeat(1, heads, 1, 1),
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shared", [False, True])
def test_layers_that_share_a_filled_tensor_lose_the_same_heads(fill: str, shared: bool) -> None:
    model = Encoder(FILLS[fill], shared).double().eval()
    units = fk.trace(model, X)
    heads = [units.groups[g] for g in units.prunable if units.groups[g].units == HEADS]
    assert [len({a.axis.tensor.split(".")[1] for a in g.axes}) for g in heads] == ([2] if shared else [1, 1])
    removed = [np.arange(1 + i) for i in range(len(units.groups))]
    assert_exact(model, units, removed, [X])


def test_buckets_do_not_follow_heads() -> None:
    model = Encoder(FILLS["zeros"], True).double().eval()
    units = fk.trace(model, X[:, :2])  # no two places are as far from each other as the proof would make them
    small = fk.apply(model, units.plan(keep_params=0.8))
    assert [layer.num_buckets for layer in small.layers] == [HEADS * SIZE] * 2
    assert all(layer.heads < HEADS for layer in small.layers)


class Queries(nn.Module):
    """Learned queries, expanded to the batch; numbers of heads in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.out = nn.Parameter(torch.randn(1, 4, WIDTH)), nn.Linear(2 * SIZE, 5)
        self.q, self.k, self.v = (nn.Linear(WIDTH, 2 * SIZE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        q = self.q(self.queries).view(1, -1, 2, SIZE).transpose(1, 2).expand(b, -1, -1, -1)
        k, v = (part(x).view(b, -1, 2, SIZE).transpose(1, 2) for part in (self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, -1, 2 * SIZE))


def test_a_batch_as_large_as_the_number_of_heads_does_not_follow_them() -> None:
    torch.manual_seed(0)
    model = Queries().double().eval()
    units = fk.trace(model, X)
    heads = next(i for i, g in enumerate(units.groups) if g.kind == "head")
    removed = [np.arange(1 if i == heads else 0) for i in range(len(units.groups))]
    assert_exact(model, units, removed, [X, X[:1], torch.cat([X, X, X[:1]])])
