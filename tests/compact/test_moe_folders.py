"""Mixtures of experts whose layers lose the same shares: what is saved is what `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import drawn
from fairkern.prove import difference

transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "use_cache": False,
}
LATENT = {
    **{k: v for k, v in BASE.items() if k != "head_dim"},
    "num_key_value_heads": 4,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "moe_intermediate_size": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
# class, options, the fields that follow and what is left of them, the kinds that lose units
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, int], set[str]]] = {
    "experts of their own on disk": (
        "Mixtral",
        {**BASE, "num_local_experts": 8},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "intermediate_size": 6},
        {"head", "expert", "expert neuron"},
    ),
    "a shared expert with a gate": (
        "Qwen2Moe",
        {**BASE, "num_experts": 8, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 10},
        {"num_experts": 4, "moe_intermediate_size": 3, "shared_expert_intermediate_size": 5},
        {"head", "expert", "expert neuron", "neuron"},
    ),
    "groups of experts, latent attention, shared experts": (
        "DeepseekV3",
        LATENT,
        {"num_attention_heads": 2, "n_routed_experts": 4, "moe_intermediate_size": 3, "intermediate_size": 6},
        {"head", "expert", "expert neuron", "neuron"},
    ),
    "the best expert of a group": (
        "DeepseekV2",
        {**LATENT, "topk_method": "group_limited_greedy"},
        {"num_attention_heads": 2, "n_routed_experts": 4, "moe_intermediate_size": 3, "intermediate_size": 6},
        {"head", "expert", "expert neuron", "neuron"},
    ),
    "fused on disk, gate and up interleaved": (
        "GptOss",
        {**BASE, "num_local_experts": 8, "layer_types": ["full_attention"] * 2},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "intermediate_size": 6},
        {"head", "expert", "expert neuron"},
    ),
    "the likeliest one after the other": (
        "Phimoe",
        {**BASE, "num_local_experts": 8},
        {"num_attention_heads": 2, "num_local_experts": 4, "intermediate_size": 6},
        {"head", "expert", "expert neuron"},
    ),
    "a bias that chooses, of two dimensions": (
        "Ernie4_5_Moe",
        {
            **{k: v for k, v in BASE.items() if k != "num_experts_per_tok"},
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 6,
            "moe_layer_start_index": 1,
        },
        {"num_attention_heads": 2, "moe_num_experts": 4, "moe_intermediate_size": 3, "intermediate_size": 6},
        {"head", "expert", "expert neuron", "neuron"},
    ),
    "fused projections, sliced by the configuration": (
        "Phi3",
        {**{k: v for k, v in BASE.items() if k != "num_experts_per_tok"}, "bos_token_id": 1, "eos_token_id": 2},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 6},
        {"head", "neuron"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_shares(name: str, tmp_path: Path) -> None:
    family, options, after, kinds = MODELS[name]
    kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = kind(getattr(transformers, f"{family}Config")(**options)).double().eval()
    model.set_experts_implementation("eager")
    inputs = {"input_ids": torch.randint(3, 40, (2, 9))}
    units = fk.trace(model, inputs)
    assert {units.groups[g].kind for g in units.prunable} == kinds
    assert {g for f in units.config for g in f.groups} == set(units.prunable)
    generator = np.random.default_rng(0)
    plan = fk.Plan.of(build(units, [drawn(g, g.units // 2, generator) for g in units.groups]))
    assert "config_left" not in plan.result
    small = fk.apply(model, plan)
    assert {field: getattr(small.config, field) for field in after} == after
    with plan.masked(model):
        assert difference(model, small, inputs) < 1e-9
    small = small.float()
    small.save_pretrained(tmp_path)
    again, loading = kind.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(loading[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again.eval().set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, small(**inputs).logits)
