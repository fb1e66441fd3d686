"""Multi-head latent attention (DeepSeek): a head's queries, its part of the latent keys and values, and its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference

WIDTH, HEADS, NOPE, ROPE, VALUE, LATENT = 12, 4, 3, 2, 5, 7


class Latent(nn.Module):
    """Queries and keys have a part that turns, which all heads' keys share, and one that does not."""

    def __init__(self, low_rank: bool) -> None:
        super().__init__()
        self.num_heads, self.joined = HEADS, NOPE + ROPE
        first = LATENT if low_rank else WIDTH
        self.q_a = nn.Linear(WIDTH, LATENT) if low_rank else nn.Identity()
        self.q_norm, self.kv_norm = nn.LayerNorm(first), nn.LayerNorm(LATENT)
        self.q_b = nn.Linear(first, HEADS * (NOPE + ROPE), bias=False)
        self.kv_a = nn.Linear(WIDTH, LATENT + ROPE, bias=False)
        self.kv_b = nn.Linear(LATENT, HEADS * (NOPE + VALUE), bias=False)
        self.o = nn.Linear(HEADS * VALUE, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q_b(self.q_norm(self.q_a(x))).view(n, t, -1, self.joined).transpose(1, 2)
        q_nope, q_rope = q.split([NOPE, ROPE], dim=-1)
        latent, k_rope = self.kv_a(x).split([LATENT, ROPE], dim=-1)
        kv = self.kv_b(self.kv_norm(latent)).view(n, t, self.num_heads, NOPE + VALUE).transpose(1, 2)
        k_nope, v = kv.split([NOPE, VALUE], dim=-1)
        k_rope = k_rope.view(n, 1, t, ROPE).expand(n, self.num_heads, t, ROPE)
        keys = kv.new_empty(*kv.shape[:-1], self.joined)
        keys[..., :NOPE], keys[..., NOPE:] = k_nope, turned(k_rope)
        scores = torch.cat((q_nope, turned(q_rope)), dim=-1) @ keys.mT * self.joined**-0.5
        return x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


def turned(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
    return torch.cat((x[..., :1] * angle.cos() - x[..., 1:] * angle.sin(), x[..., 1:] * angle.cos()), dim=-1)


@pytest.mark.parametrize("low_rank", [False, True])
def test_heads_go(low_rank: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(WIDTH), Latent(low_rank), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    model, x = model.double().eval(), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    units = fk.trace(model, x)
    (heads,) = [units.groups[g] for g in units.prunable]
    assert (heads.kind, heads.units) == ("head", HEADS)
    sizes = {str(a.axis): a.positions.shape[1] for a in heads.axes}
    assert sizes == {"1.q_b.weight:0": NOPE + ROPE, "1.kv_b.weight:0": NOPE + VALUE, "1.o.weight:1": VALUE}
    for share in (0.3, 0.5, 0.8):
        plan = fk.Plan.of(build(units, random_removal(units, share, seed=1)))
        small = fk.apply(model, plan)
        assert small[1].o.in_features == VALUE * (HEADS - plan.groups[0].removed.size)
        with plan.masked(model):
            assert difference(model, small, x) < 1e-12
