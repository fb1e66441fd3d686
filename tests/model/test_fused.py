"""Experts as transformers keeps them: told from what only looks like it, and whole families of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from tests.experts import Fused, build, samples, the

LIMIT = 1e-9


def test_what_only_looks_like_fused_experts_is_not_taken_for_them() -> None:
    class Twice(Fused):
        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            return 2 * super().forward(hidden_states, top_k_index, top_k_weights)

    units = fk.trace(build(Twice, shared=True), samples()[0])
    assert "experts looks like fused experts and computes something else" in units.notes
    assert {g.kind for g in units.groups} == {"neuron"}


_TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "use_cache": False,
    "eos_token_id": 2,
}


FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Olmoe": {"num_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 10, "shared_expert_intermediate_size": 9},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 10},
    "GptOss": {"num_local_experts": 4, "head_dim": 8, "pad_token_id": 0},
    "DeepseekV3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 10,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "qk_nope_head_dim": 4,
        "pad_token_id": 0,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_TINY, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    model.set_experts_implementation("eager")
    x = {"input_ids": torch.randint(1, 60, (2, 9))}
    units = fk.trace(model, x)
    kinds = {g.kind for g in units.groups if g.frozen is None}
    assert {"expert", "expert neuron"} <= kinds
    shared = any("shared_expert" in g.name for g in units.groups if g.frozen is None)
    assert shared == (family in ("Qwen2Moe", "DeepseekV3"))
    for fraction in (0.3, 0.7):
        plan = plan_of(units, random_removal(units, fraction, seed=1))
        small = fk.apply(model, plan)
        with fk.Plan(**vars(plan)).masked(model):
            assert difference(model, small, x) < LIMIT
        assert difference(model, small, x) > 1e-6
    batches = [({"input_ids": torch.randint(1, 60, (6, 9))}, torch.arange(6) % 3) for _ in range(2)]
    loss = partial(_last_token, classes=3)
    scores = fk.score(model, batches, loss, units=units, progress=False)
    small = fk.apply(model, plan := scores.plan(keep_params=0.8))
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_grouped_products_ask_for_is_kept(dtype: torch.dtype) -> None:
    """The kernel that transformers takes by default knows no float64, and sizes of whole 16 bytes only."""
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**{**_TINY, "intermediate_size": 32}, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config).to(dtype).eval()
    if model.config._experts_implementation != "grouped_mm":
        pytest.skip("this transformers has no grouped products here")
    x = {"input_ids": torch.randint(1, 60, (2, 9))}
    units = fk.trace(model, x)
    inner = units.groups[the(units, "expert neuron")]
    assert (inner.frozen, inner.multiple) == (None, 16 // dtype.itemsize)
    batches = [({"input_ids": torch.randint(1, 60, (6, 9))}, torch.arange(6) % 3) for _ in range(2)]
    scores = fk.score(model, batches, partial(_last_token, classes=3), units=units, progress=False)
    plan = scores.plan(keep_params=0.75)
    (removed,) = [g.removed for g in plan.groups if g.kind == "expert neuron"]
    assert removed.size
    assert removed.shape[1] % inner.multiple == 0
    for made in (plan, plan_of(units, random_removal(units, 0.3, seed=0)), units.plan(keep_params=0.8)):
        small = fk.apply(model, made)
        with fk.Plan(**vars(made)).masked(model):
            assert difference(model, small, x) < {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]


def _last_token(output: Any, y: Tensor, classes: int) -> Tensor:
    return nn.functional.cross_entropy(output.logits[:, -1, :classes], y)
