"""Families of transformers, proven by a sibling: the map is that of a proof on the whole, and cuts are exact."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import fairkern as fk
from tests.prove.test_sibling import exact, same

transformers = pytest.importorskip("transformers")
logging.getLogger("transformers").setLevel(logging.ERROR)

_TEXT = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 136,
}
_DECODER = {**_TEXT, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER = {**_TEXT, "max_position_embeddings": 64}
_GPT = {"vocab_size": 120, "n_embd": 64, "n_layer": 4, "n_head": 8, "n_positions": 64}
_IMAGES = {
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "intermediate_size": 136,
    "image_size": 16,
    "patch_size": 4,
}
_STREAMS = {
    "vocab_size": 120,
    "d_model": 64,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 136,
    "decoder_ffn_dim": 136,
}
_LATENT = {
    **_DECODER,
    "num_hidden_layers": 5,
    "num_key_value_heads": 8,
    "n_routed_experts": 12,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 28,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 18,
}
_DELTA = {
    **_DECODER,
    "num_hidden_layers": 8,
    "head_dim": 16,
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 18,
    "layer_types": ["linear_attention", "full_attention"] * 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 28,
    "shared_expert_intermediate_size": 24,
}
_ALTERNATING = {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4}

# name -> (class, its configuration, settings)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "Llama, tied, a key for every head": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_DECODER, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _DECODER),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 16}),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", _DECODER),
    "Phi": ("PhiForCausalLM", "PhiConfig", {**_DECODER, "num_key_value_heads": 8}),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "head_dim": 16}),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, **_ALTERNATING, "head_dim": 16}),
    "OLMo 2": ("Olmo2ForCausalLM", "Olmo2Config", _DECODER),
    "Cohere": ("CohereForCausalLM", "CohereConfig", _DECODER),
    "StarCoder 2": ("Starcoder2ForCausalLM", "Starcoder2Config", _DECODER),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {**{k: v for k, v in _TEXT.items() if k != "intermediate_size"}, "ffn_dim": 136, "word_embed_proj_dim": 64},
    ),
    "Bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 120, "hidden_size": 64, "n_layer": 4, "n_head": 8}),
    "Falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {k: v for k, v in _TEXT.items() if k != "intermediate_size"},
    ),
    "Mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "Qwen3-MoE": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_DECODER, "num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 28},
    ),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _LATENT),
    "GPT-OSS": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_DECODER, "num_hidden_layers": 8, "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "Qwen3-Next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", _DELTA),
    "Mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 4, "state_size": 6},
    ),
    "Mamba 2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "state_size": 12,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "BERT": ("BertForSequenceClassification", "BertConfig", _ENCODER),
    "RoBERTa": ("RobertaModel", "RobertaConfig", _ENCODER),
    "DistilBERT": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": 120,
            "dim": 64,
            "n_layers": 4,
            "n_heads": 8,
            "hidden_dim": 136,
            "max_position_embeddings": 64,
        },
    ),
    "ELECTRA": ("ElectraModel", "ElectraConfig", {**_ENCODER, "embedding_size": 48}),
    "ALBERT": ("AlbertModel", "AlbertConfig", {**_ENCODER, "embedding_size": 48}),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 120,
            "d_model": 64,
            "d_kv": 12,
            "d_ff": 136,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_heads": 6,
            "decoder_start_token_id": 0,
        },
    ),
    "BART": ("BartForConditionalGeneration", "BartConfig", {**_STREAMS, "max_position_embeddings": 64}),
    "ViT": ("ViTForImageClassification", "ViTConfig", _IMAGES),
    "DINOv2": (
        "Dinov2Model",
        "Dinov2Config",
        {k: v for k, v in _IMAGES.items() if k != "intermediate_size"},
    ),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", _IMAGES),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", _IMAGES),
}
ALWAYS = {"Llama, tied, a key for every head", "Mixtral", "ViT"}


def made(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    kind, config, settings = FAMILIES[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    if "pixel_values" in str(model.main_input_name):
        return model, {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = {"input_ids": torch.randint(3, 90, (2, 10))}
    if getattr(model.config, "is_encoder_decoder", False):
        ids["decoder_input_ids"] = torch.randint(3, 90, (2, 7))
    return model, ids


@pytest.mark.parametrize("name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_the_map_is_that_of_the_whole(name: str) -> None:
    model, given = made(name)
    units = fk.trace(model, given, verify="sibling")
    whole = fk.trace(model, given, verify="whole")
    assert len(units.sibling) > 2
    told = [replace_notes(m) for m in (units, whole)]
    assert same(told[0]) == same(told[1])
    given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    assert all(exact(model, units, given, seed) < 1e-9 for seed in (1, 2))


def replace_notes(units: fk.UnitMap) -> fk.UnitMap:
    """Without shapes in notes, which are the sibling's."""
    kept = tuple(note.partition(": ")[0] for note in units.notes if "would have the shape" not in note)
    return fk.UnitMap(**{**vars(units), "notes": kept})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "Mixtral", "T5", "Gemma 3", "DeepSeek-V3", "ViT"])
def test_branches_too(name: str) -> None:
    model, given = made(name)
    units = fk.trace(model, given, verify="sibling", depth=True)
    assert same(replace_notes(units)) == same(replace_notes(fk.trace(model, given, verify="whole", depth=True)))
    assert any(group.kind == "branch" and group.frozen is None for group in units.groups)


@pytest.mark.parametrize("name", ["Llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Mixtral", "Gemma 3"))])
def test_a_model_without_values(name: str) -> None:
    model, given = made(name)
    kind, config, settings = FAMILIES[name]
    with torch.device("meta"):
        empty = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    if hasattr(empty, "set_experts_implementation"):
        empty.set_experts_implementation("eager")
    units, whole = fk.trace(empty, given), fk.trace(model, given)
    assert units.sibling
    assert [(g.name, g.units, g.frozen) for g in units.groups] == [(g.name, g.units, g.frozen) for g in whole.groups]
    assert units.config == whole.config
    assert exact(model, units, given, 1) < 1e-9
