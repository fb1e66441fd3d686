"""The zoo's transformers: tiny, randomly initialised, with default configurations but for their sizes."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bench.zoo.entry import Batches, Entry, unlabelled

_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 67,
    "max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67, "n_positions": 64}
_VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

# name -> (class of transformers, its configuration class, configuration, kinds of input)
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "num_key_value_heads": 2}, "ids"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_DECODER, "num_key_value_heads": 2}, "ids"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, "ids"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, "ids"),
    "phi": ("PhiForCausalLM", "PhiConfig", _DECODER, "ids"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, "ids"),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, "ids"),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "vocab_size": 67,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        "ids",
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67},
        "ids",
    ),
    "bert": ("BertModel", "BertConfig", _DECODER, "ids"),
    "roberta": ("RobertaModel", "RobertaConfig", _DECODER, "ids"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "vocab_size": 67,
            "max_position_embeddings": 64,
        },
        "ids",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 67,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
        "ids decoder",
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_VISION, "image_size": 16, "patch_size": 4}, "pixels16"),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**_VISION, "image_size": 16, "patch_size": 4}, "pixels16"),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "pixels32",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "vocab_size": 67,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "mel decoder",
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_VISION, "vocab_size": 67, "max_position_embeddings": 20},
            "vision_config": {**_VISION, "image_size": 16, "patch_size": 4},
            "projection_dim": 16,
        },
        "ids pixels16",
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 67, "state_size": 4},
        "ids",
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_DECODER,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        "ids",
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        "ids",
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "ids",
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_DECODER,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        "ids",
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "ids",
    ),
    "switch": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_heads": 4,
            "vocab_size": 67,
            "num_experts": 6,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
        "ids decoder",
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**_DECODER, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
        "ids",
    ),
}

_INPUTS: dict[str, Callable[[], tuple[str, torch.Tensor]]] = {
    "ids": lambda: ("input_ids", torch.randint(1, 60, (2, 11))),
    "decoder": lambda: ("decoder_input_ids", torch.randint(1, 60, (2, 5))),
    "pixels16": lambda: ("pixel_values", torch.randn(2, 3, 16, 16)),
    "pixels32": lambda: ("pixel_values", torch.randn(2, 3, 32, 32)),
    "mel": lambda: ("input_features", torch.randn(2, 8, 40)),
}


def models() -> Iterator[Entry]:
    transformers = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name, (kind, *_) in TRANSFORMERS.items():
        made = getattr(transformers, kind, None)
        if made is not None:
            yield Entry(
                "transformers",
                name,
                lambda name=name, t=transformers: _transformer(t, name),
                _labelled if "labels" in inspect.signature(made.forward).parameters else unlabelled,
                _generate if made.can_generate() else None,
            )


def _transformer(transformers: Any, name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, config, options, kinds = TRANSFORMERS[name]
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    if hasattr(built, "set_experts_implementation"):
        built.set_experts_implementation("eager")  # the grouped product knows no float64
    return built, dict(_INPUTS[kind]() for kind in kinds.split())


def _labelled(inputs: dict[str, torch.Tensor]) -> Batches:
    """Two batches with labels: the tokens themselves, or a class of every image. The model has the loss."""
    decoded = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    labels = torch.arange(len(next(iter(inputs.values())))) % 2 if decoded is None else decoded
    return [{**inputs, "labels": labels}] * 2, None


def _generate(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    """Three tokens, one after the other, with the cache that the model makes."""
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    return model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0)  # type: ignore[operator]
