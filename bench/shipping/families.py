"""Tiny folders of a dozen families: default configurations but for their sizes, random weights, a tokenizer.

Random weights as they are initialised give logits that are nearly alike, and greedy generation that repeats one token;
they are scaled up here, so that a wrong weight changes what is generated.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY = 320

_WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
}
_GROUPED = {**_WIDE, "num_key_value_heads": 4}
_GIVEN_HEAD = {**_GROUPED, "head_dim": 8}
_GEMMA = {**_GIVEN_HEAD, "query_pre_attn_scalar": 8}  # the size of a head, as in its own configurations
_EXPERTS = {**_GROUPED, "num_hidden_layers": 3, "num_experts_per_tok": 2}
_MIXTRAL = {**_EXPERTS, "intermediate_size": 64, "num_local_experts": 8}
_QWEN_MOE = {**_EXPERTS, "head_dim": 8, "num_experts": 8, "moe_intermediate_size": 48}
_DEEPSEEK = {
    **_WIDE,
    "num_hidden_layers": 3,
    "num_key_value_heads": 8,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GPT_OSS = {**_EXPERTS, "intermediate_size": 64, "num_local_experts": 8, "head_dim": 8, "sliding_window": 32}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 4, "n_head": 8, "n_positions": 256}
_FALCON = {**{k: v for k, v in _WIDE.items() if k != "intermediate_size"}, "ffn_hidden_size": 256}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "word_embed_proj_dim": 48,
    "ffn_dim": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
}

# name → (configuration, model, sizes)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", _GROUPED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _GIVEN_HEAD),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_WIDE, "intermediate_size": 256}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _MIXTRAL),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _QWEN_MOE),
    "deepseek-v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", _DEEPSEEK),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "gpt-oss": ("GptOssConfig", "GptOssForCausalLM", _GPT_OSS),
    "falcon": ("FalconConfig", "FalconForCausalLM", _FALCON),
}
TWELVE = tuple(FAMILIES)[:12]


def make_folder(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A folder of a family with a tokenizer, and the model in it."""
    transformers = importlib.import_module("transformers")
    config, model, sizes = FAMILIES[name]
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    made = getattr(transformers, model)(getattr(transformers, config)(**sizes, **ends)).eval()
    stir(made)
    made = made.to(dtype)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return made


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Weights that generate something: matrices of a wider spread, biases and norms that are neither zero nor one."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(drawn * (1.5 / parameter.shape[-1] ** 0.5))
        elif name.endswith("bias") or "sinks" in name:
            parameter.copy_(0.1 * drawn)
        else:
            parameter.add_(0.1 * drawn)
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    if embeddings is model.get_output_embeddings().weight:  # type: ignore[operator]
        embeddings.mul_(0.15)  # else every token is followed by itself


_MODULES = (
    *("argparse", "collections", "datetime", "decimal", "difflib", "fractions", "inspect", "json"),
    *("random", "statistics", "textwrap"),
)


def documents() -> list[str]:
    """Docstrings of the standard library, in the order of their modules: text that every machine has."""
    return list(dict.fromkeys(_docstrings()))


def _docstrings() -> Iterator[str]:
    for name in _MODULES:
        module = importlib.import_module(name)
        for held in (module, *vars(module).values()):
            text = inspect.getdoc(held) if inspect.ismodule(held) or callable(held) else None
            if text and len(text) > 80:
                yield text


def write_text(path: Path) -> Path:
    path.write_text("\n\n".join(text.replace("\n\n", "\n") for text in documents()), encoding="utf-8")
    return path


def tokenizer() -> Any:
    """A small byte-level BPE, trained on the same docstrings, with the tokens that families name."""
    tokenizers = importlib.import_module("tokenizers")
    transformers = importlib.import_module("transformers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(documents(), VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
