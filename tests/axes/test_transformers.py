"""Small models of transformers: the heads and parts that can go, and that what is left is exact."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference

transformers = pytest.importorskip("transformers")
logging.getLogger("transformers").setLevel(logging.ERROR)

_TEXT = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LATENT = {
    **_DECODER,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
_DELTA = {
    **_DECODER,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_VIDEO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_frames": 2,
}

_STREAMS = {
    "vocab_size": 96,
    "hidden_size": 32,
    "encoder_ffn_dim": 64,
    "num_encoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "num_decoder_layers": 2,
    "num_decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}


def _ids(length: int = 10) -> Tensor:
    return torch.randint(3, 90, (2, length))


# name -> (class, its configuration, settings, inputs, modules by a part of their name that have heads to lose)
MODELS: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]], tuple[str, ...]]] = {
    "TimeSformer": (
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        _VIDEO,
        lambda: {"pixel_values": torch.randn(2, 2, 3, 16, 16)},
        ("0.attention.attention.qkv", "0.temporal_attention.attention.qkv"),
    ),
    "DeepSeek-V2": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        _LATENT,
        lambda: {"input_ids": _ids()},
        ("layers.0.self_attn", "layers.1.self_attn"),
    ),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _LATENT,
        lambda: {"input_ids": _ids()},
        ("layers.0.self_attn", "layers.1.self_attn"),
    ),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {**_DELTA, **_EXPERTS},
        lambda: {"input_ids": _ids()},
        ("layers.0.linear_attn", "layers.1.self_attn"),
    ),
    "Qwen3.5": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _DELTA,
        lambda: {"input_ids": _ids()},
        ("layers.0.linear_attn", "layers.1.self_attn"),
    ),
    "XLNet": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": 96, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        lambda: {"input_ids": _ids(), "token_type_ids": torch.arange(10).remainder(2).expand(2, 10)},
        ("layer.0.rel_attn", "layer.1.rel_attn"),
    ),
    "Funnel": (
        "FunnelForSequenceClassification",
        "FunnelConfig",
        {"vocab_size": 96, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
        lambda: {"input_ids": _ids()},
        ("blocks.0.0.attention", "blocks.1.0.attention"),
    ),
    "Longformer": (
        "LongformerModel",
        "LongformerConfig",
        {**_TEXT, "attention_window": 4, "max_position_embeddings": 64},
        lambda: {"input_ids": _ids(16), "global_attention_mask": torch.arange(16).eq(0).long().expand(2, 16)},
        ("layer.0.attention", "layer.1.attention"),
    ),
    "SqueezeBERT": (
        "SqueezeBertModel",
        "SqueezeBertConfig",
        {**_TEXT, "hidden_size": 48, "embedding_size": 48, "num_attention_heads": 12, "max_position_embeddings": 64},
        lambda: {"input_ids": _ids()},
        ("layers.0.attention", "layers.1.attention"),
    ),
    "ConvBERT": (
        "ConvBertForSequenceClassification",
        "ConvBertConfig",
        {**_TEXT, "embedding_size": 16, "conv_kernel_size": 3, "max_position_embeddings": 64},
        lambda: {"input_ids": _ids()},
        ("layer.0.attention", "layer.1.attention"),
    ),
    "Phi-3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        _DECODER,
        lambda: {"input_ids": _ids()},
        ("layers.0.self_attn", "layers.1.self_attn"),
    ),
    "Falcon, one key for all heads": (
        "FalconForCausalLM",
        "FalconConfig",
        {k: v for k, v in _TEXT.items() if k != "intermediate_size"} | {"multi_query": True},
        lambda: {"input_ids": _ids()},
        ("h.0.self_attention", "h.1.self_attention"),
    ),
}


def loaded(kind: str, config: str, settings: dict[str, Any]) -> nn.Module:
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model


@pytest.mark.parametrize("name", MODELS)
def test_heads_go(name: str) -> None:
    kind, config, settings, inputs, expected = MODELS[name]
    model, given = loaded(kind, config, settings), inputs()
    units = fk.trace(model, given)
    assert units.proven
    frozen = {g.name: g.frozen for g in units.groups if g.frozen}
    assert not frozen
    for part in expected:
        assert any(part in group.name and group.units > 1 for group in units.groups), part
    model, given = model.double(), {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    with plan.masked(model):
        assert difference(model, fk.apply(model, plan), given) < 1e-9


def test_a_norm_by_the_mean_over_channels_holds_them() -> None:
    """Global response normalisation divides by the mean over all channels: without some of them it is another."""
    settings = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    model = loaded("ConvNextV2ForImageClassification", "ConvNextV2Config", settings)
    with pytest.raises(fk.InputError, match="mean runs over it"):
        fk.trace(model, {"pixel_values": torch.randn(2, 3, 32, 32)})


def test_heads_that_generation_counts_stay() -> None:
    """ProphetNet repeats a mask for as many heads as its configuration has; without a mask nothing counts them."""
    model = loaded("ProphetNetForConditionalGeneration", "ProphetNetConfig", _STREAMS)
    given = {"input_ids": _ids(), "decoder_input_ids": _ids(6)}
    units = fk.trace(model, given)
    reasons = {g.frozen for g in units.groups if g.frozen}
    assert any("Attention weights should have size" in reason for reason in reasons), reasons
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    small = fk.apply(model, plan)
    assert small.generate(**given, max_new_tokens=2).shape == model.generate(**given, max_new_tokens=2).shape
