"""Which values a configuration admits is asked of its own validators, and plans for a server keep to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.prove import difference
from fairkern.prove.admitted import with_admitted
from fairkern.types import ConfigField
from tests.prove.test_description import Attending, Config, Stack


class Strict(Config):
    """Checked as a whole when it is written: heads divide the width, and key heads the query heads."""

    def validate(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("key heads do not divide the heads")


class Reread(Config):
    """Made anew from what it writes: checked then, and an odd width becomes an even one."""

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Reread:
        if fields["n_inner"] > 100:
            raise ValueError("too wide")
        return cls(n_inner=fields["n_inner"] // 2 * 2)


def field(name: str, size: int, *groups: int, **more: Any) -> ConfigField:
    return ConfigField(name, size, size, groups, **more)


def admitted(config: Any, *fields: ConfigField, units: tuple[int, ...]) -> list[tuple[int, ...] | None]:
    return [f.admitted for f in with_admitted(config, fields, units)]


def heads(hidden: int, query: int, key: int) -> list[tuple[int, ...] | None]:
    """Fields of query and key heads, and their size, for two layers whose units are key heads."""
    config = Strict(hidden_size=hidden, num_attention_heads=query, num_key_value_heads=key)
    before = dict(vars(config))
    found = admitted(
        config,
        field("num_attention_heads", query, 0, 1),
        field("num_key_value_heads", key, 0, 1),
        ConfigField("head_dim", None, hidden // query, (0, 1), fixed=True),
        units=(key, key),
    )
    assert dict(vars(config)) == before
    return found


def test_fields_that_count_the_same_groups_are_asked_together() -> None:
    """Six of eight heads do not divide 32; alone, three of four key heads never divided eight heads."""
    assert heads(32, 8, 4) == [(2, 4, 8), (1, 2, 4), None]
    assert heads(48, 8, 4) == [None, None, None]
    assert heads(64, 8, 8) == [(1, 2, 4, 8), (1, 2, 4, 8), None]
    assert heads(96, 12, 4) == [(3, 6, 12), (1, 2, 4), None]


def test_a_configuration_that_is_refused_as_it_is_admits_what_is_right() -> None:
    assert heads(32, 6, 3) == [(2, 4), (1, 2), None]


def test_a_configuration_is_read_again() -> None:
    assert admitted(Reread(n_inner=8), field("n_inner", 8, 0), units=(8,)) == [(2, 4, 6, 8)]
    # one that cannot be read as it is tells nothing that way
    assert admitted(Reread(n_inner=120), field("n_inner", 120, 0), units=(120,)) == [None]


def test_without_validators_what_can_be_set_is_admitted() -> None:
    class Rounded(Config):
        def __setattr__(self, name: str, value: Any) -> None:
            if value % 8:
                raise ValueError("eights")
            super().__setattr__(name, value)

    assert admitted(Config(width=6), field("width", 6, 0), units=(6,)) == [None]
    assert admitted(Rounded(width=32), field("width", 32, 0), units=(32,)) == [(8, 16, 24, 32)]


def test_fields_of_inner_configurations_and_values_left_to_a_default() -> None:
    class Even(Config):
        def validate(self) -> None:
            if self.n_inner is not None and self.n_inner % 2:
                raise ValueError("odd")

    config = Config(text=Even(n_inner=None))
    assert admitted(config, ConfigField("text.n_inner", None, 6, (0,)), units=(6,)) == [(2, 4, 6)]
    assert config.text.n_inner is None


def test_of_many_values_only_a_few_are_asked() -> None:
    asked: list[int] = []

    class Counting(Config):
        def validate(self) -> None:
            asked.append(self.width)

    assert admitted(Counting(width=11008), field("width", 11008, 0), units=(11008,)) == [None]
    assert len(asked) < 20
    assert {1, 2, 3, 11007} <= set(asked)

    class Multiple(Config):
        def validate(self) -> None:
            if self.width % 256:
                raise ValueError("256")

    (found,) = admitted(Multiple(width=1024), field("width", 1024, 0), units=(1024,))
    assert found == (256, 512, 768, 1024)
    (few,) = admitted(Multiple(width=1024), field("width", 1024, 0), units=(4,))  # a unit is 256 of them
    assert few is None


class Divided(Config):
    """As `Strict`, for a model whose heads are of a size of its own."""

    def validate(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("heads do not divide the width")


def attending() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    config = Divided(hidden_size=16, num_attention_heads=8, head_dim=2, intermediate_size=32)
    return Attending(config).double(), torch.randn(2, 5, 16).double()


def test_plans_for_a_server_keep_to_what_is_admitted() -> None:
    model, x = attending()
    units = fk.trace(model, x)
    assert {f.name: f.admitted for f in units.config} == {
        "num_attention_heads": (1, 2, 4, 8),
        "intermediate_size": None,
    }
    for keep in (0.9, 0.7, 0.5):
        plan = units.plan(keep_params=keep, serve="hf")
        small = fk.apply(model, plan)
        small.config.validate()
        assert small.config.num_attention_heads == small.q.out_features // 2
        assert small.config.intermediate_size == small.up.out_features
        rebuilt = Attending(small.config).double()
        rebuilt.load_state_dict(small.state_dict())
        assert torch.equal(rebuilt(x), small(x))
        with plan.masked(model):
            assert difference(model, small, x) < 1e-9
        assert plan.result["serves"]["hf"] == "yes"


def test_a_number_of_heads_that_is_refused_leaves_the_configuration_as_it_was() -> None:
    model, x = attending()
    units = fk.trace(model, x)
    removed = [np.arange(2 if g.kind == "head" else 8) for g in units.groups]
    plan = build(units, removed)
    assert plan.result["config_left"] == ["num_attention_heads"]
    assert plan.result["serves"]["hf"] == "the configuration refuses num_attention_heads=6; it admits 8, 4, 2, 1"
    small = fk.apply(model, fk.Plan(**vars(plan)))
    assert (small.config.num_attention_heads, small.config.intermediate_size) == (8, 24)


def test_scores_keep_what_is_admitted(tmp_path: Path) -> None:
    model, x = attending()
    units = fk.trace(model, x)
    scores = fk.Scores(units, {"taylor": tuple(np.arange(float(g.total)) for g in units.groups)}, {})
    scores.save(tmp_path / "scores")
    assert fk.Scores.load(tmp_path / "scores").units.config == units.config


def test_uniform_widths_are_one_number() -> None:
    """Two layers of eight: every budget leaves as many in both, to one step from below."""
    model, x = Stack(Config(intermediate_size=8)), torch.randn(3, 6)
    units = fk.trace(model, x)
    whole = sum(p.numel() for p in model.parameters())
    for k in range(1, 8):
        plan = units.plan(keep_params=1 - k / 10)
        first, second = (g.units - len(g.removed) for g in plan.groups)
        assert first == second == fk.apply(model, plan).config.intermediate_size
        assert plan.result["params_after"] <= (1 - k / 10) * whole < plan.result["params_after"] + 2 * 13


LLAMA = {"vocab_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "use_cache": False}


@pytest.mark.parametrize(("hidden", "query", "key"), [(32, 8, 4), (64, 8, 8)])
def test_a_llama_is_saved_and_loaded(hidden: int, query: int, key: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, hidden_size=hidden, num_attention_heads=query, num_key_value_heads=key)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 60, (2, 7))
    units = fk.trace(model, {"input_ids": ids})
    seen = set()
    for keep in (0.8, 0.65, 0.5):
        small = fk.apply(model, units.plan(keep_params=keep, serve="hf"))
        small.save_pretrained(tmp_path / f"{keep}")
        again, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / f"{keep}", output_loading_info=True)
        assert not any(info.values()), info
        assert difference(again.eval(), small, {"input_ids": ids}) < 1e-6
        seen.add(small.config.num_attention_heads)
        widths = {layer.mlp.up_proj.out_features for layer in small.model.layers}
        assert widths == {small.config.intermediate_size}
    assert len(seen) > 1
    assert all(hidden % n == 0 for n in seen)


def test_a_llama_without_some_layers_is_saved_and_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = transformers.LlamaConfig(**{**LLAMA, **heads, "num_hidden_layers": 3, "hidden_size": 32})
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 60, (2, 7))
    plan = fk.trace(model, {"input_ids": ids}, depth=True).plan(drop={"branch": 1, "head": 2}, serve="hf")
    assert plan.result["serves"]["hf"] == "yes"
    small = fk.apply(model, plan)
    assert (small.config.num_hidden_layers, small.config.num_attention_heads) == (2, 4)
    small.save_pretrained(tmp_path)
    again, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert difference(again.eval(), small, {"input_ids": ids}) < 1e-6
