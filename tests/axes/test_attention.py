"""Heads, shared key and value heads, masks per head, and attributes that reshapes are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes import solutions
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import Axis
from tests import heads
from tests.axes.harness import assert_exact


class Attention(nn.Module):
    """Query heads that share key and value heads; `heads` is what its reshapes are given, if `named`."""

    def __init__(self, heads: int = 6, shared: int = 3, size: int = 4, named: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.head_dim = size
        self.named = named
        if named:
            self.num_heads, self.num_key_value_heads = heads, shared
        self.q = nn.Linear(8, heads * size)
        self.k, self.v = nn.Linear(8, shared * size), nn.Linear(8, shared * size)
        self.out = nn.Linear(heads * size, 8)
        self.table = nn.Parameter(torch.randn(1, heads, 5, 5)) if bias else None
        self.repeat = heads // shared

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        counts = (self.num_heads, *[self.num_key_value_heads] * 2) if self.named else (-1, -1, -1)
        q, k, v = (
            m(x).view(n, t, count, self.head_dim).transpose(1, 2)
            for m, count in zip((self.q, self.k, self.v), counts, strict=True)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.table, enable_gqa=self.repeat > 1)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class Fused(nn.Module):
    """One projection for queries, keys and values; a softmax of its own; as many heads as there are parts."""

    def __init__(self, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, size, size**-0.5
        self.qkv = nn.Linear(8, 3 * heads * size)
        self.proj = nn.Linear(heads * size, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.head = nn.LayerNorm(8), attention, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(self.norm(x)))


X = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

# name -> (attention, units, positions per unit on its first projection)
CASES = {
    "one key head for each query head": (lambda: Attention(4, 4), 4, 4),
    "two query heads share a key head": (lambda: Attention(6, 3), 3, 8),
    "sizes left to view": (lambda: Attention(6, 3, named=False), 3, 8),
    "a bias of its own for every head": (lambda: Attention(4, 4, bias=True), 4, 4),
    "fused projection": (lambda: Fused(4), 4, 12),
    "as many heads as fused parts": (lambda: Fused(3), 3, 12),
    "as many heads as positions in each": (lambda: Attention(4, 4, size=4), 4, 4),
    "all query heads share one key head": (lambda: Attention(5, 1), 5, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_heads_are_units(name: str) -> None:
    attention, units, per_unit = CASES[name]
    torch.manual_seed(0)
    model = Block(attention()).double().eval()
    found = fk.trace(model, X)
    (group,) = [found.groups[g] for g in found.prunable]
    first = next(a for a in group.axes if a.axis.tensor.startswith("attention.q"))
    assert (group.kind, group.units, first.positions.shape[1]) == ("head", units, per_unit)
    for fraction in (0.3, 0.7):
        assert_exact(model, found, random_removal(found, fraction, seed=0), [X])


def test_attributes_follow_the_heads() -> None:
    torch.manual_seed(0)
    model = Block(Attention(6, 3)).double().eval()
    units = fk.trace(model, X)
    small = fk.apply(model, build(units, random_removal(units, 0.34, seed=0)))
    assert (small.attention.num_heads, small.attention.num_key_value_heads) == (4, 2)
    assert (small.attention.head_dim, small.attention.q.out_features) == (4, 16)


def test_a_coincidence_of_sizes_is_dropped_by_the_proof() -> None:
    """`rank` equals the number of heads and must not follow it; the heads are cut all the same."""

    class Coincidence(Attention):
        def __init__(self) -> None:
            super().__init__(4, 4, named=False)
            self.rank = 4

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.ones(self.rank).sum()

    torch.manual_seed(0)
    model = Block(Coincidence()).double().eval()
    units = fk.trace(model, X)
    assert [units.groups[g].kind for g in units.prunable] == ["head"]
    small = fk.apply(model, build(units, random_removal(units, 0.5, seed=0)))
    assert small.attention.rank == 4


def test_scores_of_heads() -> None:
    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(Attention(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).mean(1)

    model = Classifier().eval()
    x, y = torch.randn(24, 5, 8), torch.arange(24) % 3
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), projections=8, progress=False)
    (u,), (r,) = scores.signals["wasserstein"], scores.signals["taylor"]
    assert u.shape == r.shape == (3,)
    assert (u > 0).all()
    assert (r > 0).all()


def weighted(attn: nn.Module, x: Tensor) -> Tensor:
    out, weights = attn(x, x, x)
    return out * weights.mean()


def test_weights_that_are_used_freeze_the_heads() -> None:
    """The mean over heads is not the same with fewer of them."""
    model = heads.Block(weighted, batch_first=True).double()
    units = solutions(model, [torch.randn(2, 5, heads.WIDTH, dtype=torch.float64)])[0].units
    reasons = {f.reason for f in units.frozen if f.axis == Axis("attn.in_proj_weight", 0)}
    assert reasons == {"mean in attn runs over it"}
