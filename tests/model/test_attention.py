"""Torch's attention function, and modules whose own code calls it."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.attention import multi_head_attention
from fairkern.plans.removals import random_removal
from tests.axes.harness import assert_exact

WIDTH, HEADS, L, S, N = 12, 3, 4, 5, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHTS: dict[str, dict[str, Any]] = {
    "joint": {"in_proj_weight": drawn(3 * WIDTH, WIDTH)},
    "separate": {
        "in_proj_weight": None,
        "use_separate_proj_weight": True,
        "q_proj_weight": drawn(WIDTH, WIDTH, seed=1),
        "k_proj_weight": drawn(WIDTH, 7, seed=2),
        "v_proj_weight": drawn(WIDTH, 9, seed=3),
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "no bias": {"in_proj_bias": None, "out_proj_bias": None},
    "bias of keys": {"bias_k": drawn(1, 1, WIDTH, seed=4), "bias_v": drawn(1, 1, WIDTH, seed=5)},
    "zeros": {"add_zero_attn": True, "need_weights": False},
    "mask": {"attn_mask": drawn(L, S, seed=6)},
    "boolean mask": {"attn_mask": torch.arange(L)[:, None] < torch.arange(S) - 1, "need_weights": False},
    "mask per head": {"attn_mask": drawn(N * HEADS, L, S, seed=7)},
    "padding": {"key_padding_mask": torch.tensor([[False] * S, [False] * 3 + [True] * 2])},
    "causal": {"attn_mask": drawn(L, S, seed=8), "is_causal": True, "need_weights": False},
}


@pytest.mark.parametrize(("weights", "options"), itertools.product(WEIGHTS, OPTIONS))
def test_it_gives_what_torch_gives(weights: str, options: str) -> None:
    given = {
        "embed_dim_to_check": WIDTH,
        "num_heads": HEADS,
        "in_proj_bias": drawn(3 * WIDTH, seed=9),
        "bias_k": None,
        "bias_v": None,
        "add_zero_attn": False,
        "dropout_p": 0.0,
        "out_proj_weight": drawn(WIDTH, WIDTH, seed=10),
        "out_proj_bias": drawn(WIDTH, seed=11),
    }
    given |= WEIGHTS[weights] | OPTIONS[options]
    widths = (WIDTH, WIDTH) if weights == "joint" else (7, 9)
    inputs = [drawn(L, N, WIDTH, seed=12), *(drawn(S, N, width, seed=13) for width in widths)]
    calls = [inputs]
    if not {"attn_mask", "key_padding_mask"} & OPTIONS[options].keys():
        calls.append([x[:, 0] for x in inputs])  # without a batch
    for x in calls:
        expected, found = (f(*x, **given) for f in (F.multi_head_attention_forward, multi_head_attention))
        for a, b in zip(expected, found, strict=True):
            assert (a is None) is (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-12)


class Pool(nn.Module):
    """One query, the mean over all places, as in CLIP's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.place = nn.Parameter(torch.randn(17, WIDTH))
        self.q, self.k, self.v, self.c = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.place[:, None]
        out, _ = F.multi_head_attention_forward(
            x[:1],
            x,
            x,
            x.shape[-1],
            self.num_heads,
            None,
            torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            None,
            None,
            False,
            0.0,
            self.c.weight,
            self.c.bias,
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )
        return out[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, WIDTH, 1), Pool(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x).relu()).relu())


def test_a_pool_loses_heads_and_channels() -> None:
    torch.manual_seed(0)
    model, x = Net().double().eval(), drawn(2, 3, 4, 4)
    units = fk.trace(model, x)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == {
        "conv": WIDTH,
        "pool.q": HEADS,
        "pool.c": 5,
    }
    small = assert_exact(model, units, random_removal(units, 0.4, seed=1), [x])
    assert (small.pool.num_heads, type(model.pool)) == (2, Pool)
    assert type(small.pool).__name__ == "Pool"
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(again(x), small(x))
    torch.compiler.reset()
    assert torch.allclose(torch.compile(small, backend="eager", fullgraph=True)(x), small(x), rtol=1e-12)


def test_a_pool_is_scored_and_cut_again() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(24, 3, 4, 4)
    loader = [(x, torch.arange(24) % 3)]
    scores = fk.score(model, loader, nn.CrossEntropyLoss(), projections=4, progress=False)
    assert all((values > 0).any() for values in scores.signals["taylor"])
    small = fk.apply(model, scores.plan(keep_params=0.7))
    smaller = fk.apply(small, fk.trace(small, x[:2]).plan(keep_params=0.7))
    assert smaller(x).shape == (24, 3)
    assert type(pickle.loads(pickle.dumps(smaller)).pool).__name__ == "Pool"
