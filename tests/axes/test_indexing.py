"""Writes and reads at given places: what they point into stays, everything else goes along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.axes.harness import Case, Net, check_exact, check_groups

FREE = {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"}
PLACES = torch.tensor([3, 1, 6])
MASK = torch.arange(8) > 3


def free(function: Callable[[Tensor], Any], reads: int = 8) -> Case:
    """A function that points into space between two convolutions."""
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(reads, 4, 1)),
        FREE if reads == 8 else {"a": "8: a.bias:0 a.weight:0 b.weight:1*x2 @ bx2"},
    )


def kept(reason: str, function: Callable[[Tensor], Any], reads: int = 8) -> Case:
    """A function that points into channels: they stay."""
    return Case(free(function, reads).model, {}, {"a.weight:0": reason})


def put(x: Tensor, *indices: Any, accumulate: bool = False) -> Tensor:
    """Space first, so that it is what the indices point into."""
    x = x.permute(2, 3, 0, 1)
    return x.index_put(indices, x[indices] * 2, accumulate=accumulate).permute(2, 3, 0, 1)


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, MASK] = 0.5
    x[:, :, 0, PLACES] = x[:, :, 1, PLACES] + 1
    return x


def swapped(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Channels where the function expects space."""
    return lambda x: function(x.transpose(1, 2)).transpose(1, 2)


CASES = {
    "masked in space": free(lambda x: x[:, :, MASK]),
    "masked over two dimensions": free(lambda x: x[:, :, torch.ones(8, 8).tril() > 0][..., None]),
    "masked and indexed": free(lambda x: x[:, :, MASK, PLACES[:1]][..., None]),
    "masked over everything": kept("is used as an index", lambda x: x * x[x > 0].sum()),
    "index_add": free(lambda x: torch.zeros_like(x).index_add(2, PLACES, x[:, :, :3])),
    "index_add in place": free(lambda x: x.clone().index_add_(3, PLACES, x[..., :3])),
    "index_add along channels": kept(
        "is written in part", lambda x: x.index_add(1, PLACES, torch.ones(2, 3, 8, 8).double())
    ),
    "index_add of a gate": free(lambda x: x.index_add(2, PLACES, x.mean(2, keepdim=True).expand(-1, -1, 3, -1))),
    "index_copy": free(lambda x: x.index_copy(2, PLACES, x[:, :, :3])),
    "index_fill": free(lambda x: x.index_fill(2, PLACES, 0.5)),
    "index_fill along channels": kept("is written in part", lambda x: x.index_fill(1, PLACES, 0.5)),
    "ones made uneven": kept(
        "meets a fixed size", lambda x: x * torch.ones(8).double().index_fill(0, PLACES, 0.5)[:, None, None]
    ),
    "index_put": free(lambda x: put(x, PLACES, PLACES)),
    "index_put, one index": free(lambda x: put(x, PLACES)),
    "index_put, accumulating": free(lambda x: put(x, PLACES, PLACES, accumulate=True)),
    "index_put by a mask": free(lambda x: put(x, MASK)),
    "assigned": free(assigned),
    "assigned along channels": kept(
        "meets a fixed size in masked_fill_|is written in part by index_put_", swapped(assigned)
    ),
    "slice_scatter": free(lambda x: x.slice_scatter(x[:, :, :2] * 2, 2, 4, 6)),
    "slice_scatter along channels": kept("is sliced|in part", lambda x: x.slice_scatter(x[:, :2] * 2, 1, 4, 6)),
    "select_scatter": free(lambda x: x.select_scatter(x[:, :, 3], 2, 1)),
    "diagonal": free(lambda x: x.diagonal(dim1=2, dim2=3).unsqueeze(-1)),
    "diagonal with channels": kept(
        "diagonal is read", lambda x: x * x.diagonal(dim1=1, dim2=2).sum((1, 2))[:, None, None, None]
    ),
    "diagonal matrix": free(lambda x: torch.diag_embed(x.mean(3))),
    "triangle": free(lambda x: x.tril() + x.triu(1)),
    "triangle with channels": kept("cut to a triangle", lambda x: x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2)),
    "causal mask": free(lambda x: x.masked_fill(torch.ones(8, 8).triu(1).bool(), 0.0)),
    "turned": free(lambda x: x.rot90(1, (2, 3)).contiguous()),
    "turned with channels": kept("is turned", lambda x: x.rot90(2, (1, 2))),
    "bucketized": free(lambda x: torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5]).double()).double()),
    "searched": free(lambda x: torch.searchsorted(torch.tensor([-0.5, 0.0, 0.5]).double(), x.contiguous()).double()),
    "bounds from channels": kept("bounds intervals", lambda x: x + torch.bucketize(x, x.mean((0, 2, 3)))),
    "repeated one by one": free(lambda x: x.repeat_interleave(2, dim=2)),
    "channels repeated one by one": free(lambda x: x.repeat_interleave(2, dim=1), reads=16),
    "repeated by counts": free(lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1, 1, 1]), dim=2)),
    "einsum with a gate": free(lambda x: torch.einsum("nchw,nc->nchw", x, x.mean((2, 3)))),
    "einsum over space": free(lambda x: torch.einsum("nchw,nchv->ncwv", x, x)),
    "einsum over channels": kept("two activations", lambda x: x * torch.einsum("nchw,nchw->nhw", x, x)[:, None]),
    "glu": free(lambda x: F.glu(torch.cat([x, x * 2], 1), 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def relative_position(m: Net, x: Tensor) -> Tensor:
    """A table with a bias per head, looked up by the distance of two tokens."""
    n = x.shape[1]
    q, k, v = (t.view(2, n, -1, 4).transpose(1, 2) for t in (m.q(x), m.k(x), m.v(x)))
    distance = torch.bucketize(torch.arange(n)[:, None] - torch.arange(n)[None], torch.tensor([-3, -1, 1, 3]))
    bias = m.table[distance].permute(2, 0, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return m.o(out.transpose(1, 2).flatten(2))


def test_a_relative_position_table_goes_with_its_heads() -> None:
    case = Case(
        lambda: Net(
            relative_position,
            q=nn.Linear(5, 12),
            k=nn.Linear(5, 12),
            v=nn.Linear(5, 12),
            o=nn.Linear(12, 3),
            table=nn.Parameter(torch.randn(5, 3)),
        ),
        {"q": "3: k.bias:0x4 k.weight:0x4 o.weight:1*x4 q.bias:0x4 q.weight:0x4 table:1 v.bias:0x4 v.weight:0x4 @ ox4"},
        {"table:0": "is indexed"},
        shape=(2, 7, 5),
    )
    check_groups(case)
    check_exact(case)
