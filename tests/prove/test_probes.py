"""Configurations whose fields count units in ways that their names do not say: building the model tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import drawn, random_removal
from fairkern.prove import difference
from tests.experts import Chosen, Fused, samples
from tests.prove.test_description import Config

LIMIT = 1e-9


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(Fused):
    def __init__(self, config: Config) -> None:
        super().__init__(experts=config.n_routed_experts)
        inner, width = config.moe_intermediate_size, config.hidden_size
        self.intermediate_dim = inner
        self.gate_up_proj = nn.Parameter(torch.randn(self.num_experts, 2 * inner, width) * 0.5)
        self.down_proj = nn.Parameter(torch.randn(self.num_experts, width, inner) * 0.5)


class Router(Chosen):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.n_routed_experts)


class Mixed(nn.Module):
    """A dense layer, then experts beside shared ones, `n_shared_experts` times as wide as one of them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(4, config.hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.dense = Gated(config.hidden_size, config.intermediate_size)
        self.router, self.experts = Router(config), Experts(config)
        self.shared = Gated(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)
        self.head = nn.Linear(config.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.dense(self.norms[0](x))
        tokens = self.norms[1](x).reshape(-1, x.shape[-1])
        weights, index = self.router(tokens)
        return self.head(x + (self.experts(tokens, index, weights) + self.shared(tokens)).view(x.shape))


SIZES = {
    "hidden_size": 6,
    "intermediate_size": 12,
    "moe_intermediate_size": 6,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}


def even(units: fk.UnitMap, share: float) -> fk.Plan:
    generator = np.random.default_rng(0)
    counts = [round(share * g.units) if g.frozen is None else 0 for g in units.groups]
    removed = [drawn(g, n, generator) for g, n in zip(units.groups, counts, strict=True)]
    return fk.Plan.of(build(units, removed))


def counted(units: fk.UnitMap) -> dict[str, list[str]]:
    return {f.name: [units.groups[g].name for g in f.groups] for f in units.config}


def test_what_each_field_counts() -> None:
    """As wide as the dense layer are the shared experts, and a multiple of an expert's width."""
    torch.manual_seed(0)
    model, x = Mixed(Config(**SIZES)).double().eval(), samples()[0]
    units = fk.trace(model, x)
    assert counted(units) == {
        "intermediate_size": ["dense.gate_proj"],
        "moe_intermediate_size": ["experts.gate_up_proj", "shared.gate_proj"],
        "n_routed_experts": ["experts"],
    }
    assert not units.notes
    plan = even(units, 0.5)
    small = fk.apply(model, plan)
    fields = ("intermediate_size", "moe_intermediate_size", "n_routed_experts", "n_shared_experts")
    assert [getattr(small.config, name) for name in fields] == [6, 3, 4, 2]
    rebuilt = Mixed(small.config).double().eval()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(x), small(x))
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


def test_shares_that_differ_leave_a_field() -> None:
    torch.manual_seed(0)
    model, x = Mixed(Config(**SIZES)).double().eval(), samples()[0]
    units = fk.trace(model, x)
    generator = np.random.default_rng(0)
    counts = {"experts.gate_up_proj": 2, "shared.gate_proj": 5, "experts": 2}
    plan = fk.Plan.of(build(units, [drawn(g, counts.get(g.name, 0), generator) for g in units.groups]))
    assert plan.result["config_left"] == ["moe_intermediate_size"]
    assert [(c.name, c.after) for c in plan.config] == [("n_routed_experts", 6)]


class Fields(Mixed):
    """Fields whose names say nothing."""

    def __init__(self, config: Config) -> None:
        named = {"intermediate_size": config.a, "moe_intermediate_size": config.b}
        known = Config(**{**SIZES, **named, "n_routed_experts": config.n_routed_experts})
        super().__init__(known)
        self.config = config


def test_names_that_say_nothing() -> None:
    """Where no name is known nothing is built; where one is, the others are found by building too."""
    torch.manual_seed(0)
    model, x = Fields(Config(a=12, b=6, n_routed_experts=8)).double().eval(), samples()[0]
    units = fk.trace(model, x)
    assert counted(units) == {
        "a": ["dense.gate_proj"],
        "b": ["experts.gate_up_proj", "shared.gate_proj"],
        "n_routed_experts": ["experts"],
    }


class Sliced(nn.Module):
    """Attention whose fused projection is sliced at places computed from the configuration (Phi-3)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.head_dim = config, config.head_dim
        self.num_key_value_heads = config.num_key_value_heads
        made = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, made, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv_proj(x)
        end = self.config.num_attention_heads * self.head_dim
        keys = end + self.num_key_value_heads * self.head_dim
        parts = (made[..., :end], made[..., end:keys], made[..., keys:])
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        heads = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.o_proj(heads.transpose(1, 2).flatten(2))


class Two(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed, self.head = nn.Linear(4, config.hidden_size), nn.Linear(config.hidden_size, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(config.hidden_size), Sliced(config)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.Sequential(*self.layers)(self.embed(x)))


def test_slices_at_places_that_the_configuration_gives() -> None:
    """They are right by themselves where it follows, and are put right where layers differ."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 3}
    model, x = Two(Config(**sizes)).double().eval(), samples()[0]
    units = fk.trace(model, x)
    assert set(counted(units)) == {"num_attention_heads", "num_key_value_heads"}
    for plan in (even(units, 0.5), even(units, 0.25), fk.Plan.of(build(units, random_removal(units, 0.5, seed=1)))):
        small = fk.apply(model, plan)
        with plan.masked(model):
            assert difference(model, small, x) < LIMIT
    removed = [np.arange(1 + k) for k, _ in enumerate(units.groups)]
    plan = fk.Plan.of(build(units, removed))
    small = fk.apply(model, plan)
    assert small.config.num_attention_heads == 4
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT
    rebuilt = Two((halved := fk.apply(model, even(units, 0.5))).config).double().eval()
    rebuilt.load_state_dict(halved.state_dict())
    assert torch.allclose(rebuilt(x), halved(x), atol=1e-12)


class Unnamed(nn.Module):
    """How many heads there are and how large one is have names that say nothing; either makes the same shapes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.size = config, config.s
        self.q, self.k, self.v = (nn.Linear(8, config.h * config.s, bias=False) for _ in range(3))
        self.out = nn.Linear(config.h * config.s, 8)
        self.up, self.down = nn.Linear(8, config.intermediate_size), nn.Linear(config.intermediate_size, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


def test_a_field_that_only_makes_the_right_shapes_does_not_follow() -> None:
    torch.manual_seed(0)
    model, x = Unnamed(Config(s=4, h=4, intermediate_size=12)).double().eval(), torch.randn(2, 5, 8).double()
    units = fk.trace(model, x)
    assert {units.groups[g].kind for g in units.prunable} == {"head", "neuron"}
    assert set(counted(units)) == {"intermediate_size"}
    assert any("(s, intermediate_size)" in note and "built from it differs" in note for note in units.notes), (
        units.notes
    )
    plan = even(units, 0.5)
    small = fk.apply(model, plan)
    assert (small.config.s, small.config.h, small.config.intermediate_size) == (4, 4, 6)
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT
