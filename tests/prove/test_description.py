"""A transformers configuration describes the pruned model where it can, and says so where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.prove import difference


class Config:
    """What fairkern asks of a configuration: fields as attributes, and `to_dict`."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Stack(nn.Module):
    """Two MLPs of `intermediate_size`. `reads` makes the forward pass look at the configuration."""

    reads = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        n = config.intermediate_size
        self.up = nn.ModuleList(nn.Linear(6, n) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(n, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
            if self.reads:
                x = x * self.config.intermediate_size**-0.5
        return x


class Reading(Stack):
    reads = True


def even(units: fk.UnitMap, share: float = 0.5) -> list[np.ndarray]:
    return [np.arange(int(share * g.units) if g.frozen is None else 0) for g in units.groups]


def cut(model: nn.Module, units: fk.UnitMap, removed: list[np.ndarray]) -> tuple[nn.Module, fk.Plan]:
    plan = fk.Plan(**vars(build(units, removed)))
    return fk.apply(model, plan), plan


def test_the_config_follows() -> None:
    torch.manual_seed(0)
    model, x = Stack(Config(intermediate_size=8)).double(), torch.randn(3, 6).double()
    units = fk.trace(model, x)
    small, plan = cut(model, units, even(units))
    assert small.config.intermediate_size == 4
    assert model.config.intermediate_size == 8
    rebuilt = Stack(small.config).double()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(x), small(x))
    with plan.masked(model):
        assert difference(model, small, x) < 1e-12
    fk.apply(model, plan, inplace=True)
    assert model.config.intermediate_size == 4


def test_layers_that_differ_leave_it() -> None:
    torch.manual_seed(0)
    model, x = Stack(Config(intermediate_size=8)).double(), torch.randn(3, 6).double()
    units = fk.trace(model, x)
    small, plan = cut(model, units, [np.arange(2), np.arange(3)])
    assert small.config.intermediate_size == 8
    assert plan.config == ()
    assert plan.result["config_left"] == ["intermediate_size"]
    assert fk.summarise(plan).choices["config_left"] == ["intermediate_size"]


def test_a_forward_pass_that_would_compute_something_else_leaves_it() -> None:
    """The field is right for building, but the model computes with it what the masked model does not."""
    torch.manual_seed(0)
    model, x = Reading(Config(intermediate_size=8)).double(), torch.randn(3, 6).double()
    units = fk.trace(model, x)
    assert units.config == ()
    assert any("(intermediate_size) does not describe" in note and "differs" in note for note in units.notes)
    small, _ = cut(model, units, even(units))
    assert small.config.intermediate_size == 8


def test_another_config_is_refused() -> None:
    model, x = Stack(Config(intermediate_size=8)), torch.randn(3, 6)
    units = fk.trace(model, x)
    _, plan = cut(model, units, even(units))
    model.config.intermediate_size = 9
    with pytest.raises(fk.PlanMismatchError, match=r"config\.intermediate_size is 9 here, the plan expects 8"):
        fk.apply(model, plan)


def test_the_plan_keeps_it(tmp_path: Path) -> None:
    model, x = Stack(Config(intermediate_size=8)), torch.randn(3, 6)
    units = fk.trace(model, x)
    small, plan = cut(model, units, even(units))
    fk.save_pruned(small, plan, tmp_path / "small")
    assert fk.load_pruned(Stack(Config(intermediate_size=8)), tmp_path / "small").config.intermediate_size == 4


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 67}
# model, configuration, its options, the fields after half of every group is gone
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "num_key_value_heads": 2}, (2, 1, 8, 24)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**SMALL, "num_key_value_heads": 2}, (2, 1, 8, 24)),
    "bert": ("BertModel", "BertConfig", SMALL, (4, None, None, 24)),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, configuration, options, after = MODELS[name]
    torch.manual_seed(0)
    build_from = getattr(transformers, kind)
    model = build_from(getattr(transformers, configuration)(**options, use_cache=False)).double().eval()
    inputs = {"input_ids": torch.randint(0, 67, (2, 9))}
    units = fk.trace(model, inputs)
    small, plan = cut(model, units, even(units))
    fields = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert tuple(getattr(small.config, f, None) for f in fields) == after
    with plan.masked(model):
        assert difference(model, small, inputs) < 1e-9
    if name == "bert":  # the size of a head is what the width and their number make it
        assert any("num_attention_heads" in note for note in units.notes)
        return
    rebuilt = build_from._from_config(small.config).double().eval()
    rebuilt.load_state_dict(small.state_dict())
    assert difference(rebuilt, small, inputs) < 1e-12  # memory aligned otherwise adds up otherwise


class Derived(Config):
    """The size of a head is computed, and the inner size is checked when it is set."""

    @property
    def head_dim(self) -> int:
        return int(vars(self)["hidden_size"] // vars(self)["num_attention_heads"])

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "intermediate_size" and value % 8:
            raise ValueError("intermediate_size has to be a multiple of 8")
        super().__setattr__(name, value)


class Attending(nn.Module):
    """Heads of a size that the configuration derives, then an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.size = config.head_dim
        inner = config.num_attention_heads * config.head_dim
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, inner) for _ in range(3))
        self.o = nn.Linear(inner, config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.o((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(-2))
        return x + self.down(self.up(x).relu())


def test_a_field_that_cannot_be_set_is_noted() -> None:
    torch.manual_seed(0)
    config = Derived(hidden_size=16, num_attention_heads=4, intermediate_size=32)
    model, x = Attending(config).double(), torch.randn(2, 5, 16).double()
    units = fk.trace(model, x)
    assert {g.kind for g in units.groups if g.frozen is None} == {"head", "neuron"}
    assert any("num_attention_heads" in note and "head_dim" in note for note in units.notes), units.notes
    assert [field.name for field in units.config] == ["intermediate_size"]
    small, _ = cut(model, units, even(units))
    assert small.config.intermediate_size == 16
    assert vars(small.config)["num_attention_heads"] == 4


def test_a_value_that_is_refused_leaves_the_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attending(Derived(hidden_size=16, num_attention_heads=4, intermediate_size=32)).double()
    x = torch.randn(2, 5, 16).double()
    units = fk.trace(model, x)
    removed = [np.arange(3 if g.kind == "neuron" else 0) for g in units.groups]
    known = build(units, removed)
    assert (known.config, known.result["config_left"]) == ((), ["intermediate_size"])
    assert known.result["serves"]["hf"] == "the configuration refuses intermediate_size=29; it admits 32, 24, 16, 8"
    units = replace(units, config=tuple(replace(f, admitted=None) for f in units.config))  # as files of before have it
    with pytest.warns(UserWarning, match="multiple of 8"):
        small, plan = cut(model, units, removed)
    assert small.config.intermediate_size == 32
    with plan.masked(model):
        assert difference(model, small, x) < 1e-12
    fk.save_pruned(small, plan, tmp_path / "small")
    with pytest.warns(UserWarning, match="multiple of 8"):
        again = fk.load_pruned(Attending(model.config).double(), tmp_path / "small")
    assert torch.equal(again(x), small(x))


class Aliased(Config):
    """The size of a head is a field of another name, as T5's is."""

    attribute_map: ClassVar = {"head_dim": "d_kv"}

    def __getattr__(self, name: str) -> Any:
        if name == "head_dim":
            return vars(self)["d_kv"]
        raise AttributeError(name)


class Heads(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.size = config, config.d_kv
        self.q, self.k, self.v = (nn.Linear(8, config.num_heads * config.d_kv) for _ in range(3))
        self.out = nn.Linear(config.num_heads * config.d_kv, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_heads_follow_where_their_size_has_another_name() -> None:
    torch.manual_seed(0)
    model, x = Heads(Aliased(num_heads=4, d_kv=2, hidden_size=8)).double(), torch.randn(3, 5, 8).double()
    units = fk.trace(model, x)
    assert not units.notes
    small, _ = cut(model, units, even(units))
    assert (small.config.num_heads, small.config.d_kv, "head_dim" in vars(small.config)) == (2, 2, False)
    rebuilt = Heads(small.config).double()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(x), small(x))
