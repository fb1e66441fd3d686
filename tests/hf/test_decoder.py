"""Families of transformers, held against the definition: which are Llama-like, and why others are not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fairkern as fk
from fairkern.hf.blocks import blocks_of
from fairkern.hf.decoder import _TOLERANCE, family_of, logits
from tests.hf.decoders import SIZES, away, built

transformers = pytest.importorskip("transformers")
SIX = {**SIZES, "num_hidden_layers": 6}

LIKE: dict[str, tuple[Callable[[], Any], str]] = {
    "Llama": (lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), "llama"),
    "Llama, tied": (lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True), "llama"),
    "Mistral": (lambda: transformers.MistralConfig(**SIZES, sliding_window=None), "llama"),
    "Mistral, context of the window": (lambda: transformers.MistralConfig(**SIZES, sliding_window=256), "llama"),
    "Qwen2": (lambda: transformers.Qwen2Config(**SIZES), "llama"),
    "Qwen3": (lambda: transformers.Qwen3Config(**SIZES, head_dim=16), "llama"),
    "Phi3": (lambda: transformers.Phi3Config(**SIZES, pad_token_id=0), "llama"),
    "Seed": (lambda: transformers.SeedOssConfig(**SIZES, head_dim=16), "llama"),
    "Granite of ones": (
        lambda: transformers.GraniteConfig(**SIZES, attention_multiplier=8**-0.5),
        "llama",
    ),
    "Gemma": (lambda: transformers.GemmaConfig(**SIZES, head_dim=16), "gemma"),
}

NOT: dict[str, tuple[Callable[[], Any], str]] = {
    "another activation": (lambda: transformers.LlamaConfig(**SIZES, hidden_act="gelu"), "computes something else"),
    "scaled logits": (
        lambda: transformers.GraniteConfig(**SIZES, attention_multiplier=8**-0.5, logits_scaling=2.0),
        "computes something else",
    ),
    "layers without rotation": (lambda: transformers.SmolLM3Config(**SIX, pad_token_id=0), "computes something else"),
    "norms behind": (lambda: transformers.Olmo2Config(**SIZES), "has no place"),
    "soft caps": (lambda: transformers.Gemma2Config(**SIZES, head_dim=16, sliding_window=512), "has no place"),
    "experts": (lambda: transformers.MixtralConfig(**SIZES), "experts have no place"),
    "a window": (
        lambda: transformers.MistralConfig(**SIZES, sliding_window=16),
        "sliding_window is 16 and the context",
    ),
    "windows in some layers": (
        lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "sliding_window is 8",
    ),
    "yarn": (
        lambda: transformers.LlamaConfig(
            **SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
        ),
        "rotary embedding 'yarn'",
    ),
    "part of a head": (
        lambda: transformers.Phi3Config(
            **SIZES,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        "does not rotate whole heads",
    ),
    "no gate": (lambda: transformers.ArceeConfig(**SIZES), "lacks the weight 'gate'"),
    "GPT-2": (lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2), "no Llama-like decoder"),
}


@pytest.mark.parametrize("name", LIKE)
def test_families_that_are(name: str) -> None:
    config, variant = LIKE[name]
    assert family_of(config()).variant.name == variant


@pytest.mark.parametrize("name", NOT)
def test_families_that_are_not(name: str) -> None:
    config, what = NOT[name]
    with pytest.raises(fk.InputError, match=what) as raised:
        family_of(config())
    assert "\n" not in str(raised.value)


def test_what_is_compared_shows_what_differs() -> None:
    config = transformers.LlamaConfig(**SIZES)
    model, family = built(config), family_of(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.02)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    blocks = blocks_of(shapes, family.head_size, family.layers, tied=False)
    tokens = torch.arange(48).mul(7).remainder(128)
    with torch.no_grad():
        expected = model(input_ids=tokens[None], use_cache=False).logits[0]
    assert away(logits(tokens, blocks, weights, family), expected) < _TOLERANCE / 10
    changed = {"epsilon": 1e-5, "base": 1.1e4, "factors": (1.0, 1.0, 1.0, 1.5)}
    for field, value in changed.items():
        other = dataclasses.replace(family, **{field: value})
        assert away(logits(tokens, blocks, weights, other), expected) > _TOLERANCE, field


def test_factors_of_frequencies() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        **SIZES, head_dim=64, rope_parameters={**rope, "original_max_position_embeddings": 8192}
    )
    factors = family_of(config).factors
    assert len(factors) == 32
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert list(factors) == sorted(factors)
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    assert set(family_of(transformers.LlamaConfig(**SIZES, rope_parameters=linear)).factors) == {4.0}


def test_it_draws_nothing_from_others() -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state()
    family_of(transformers.LlamaConfig(**SIZES))
    assert torch.equal(torch.random.get_rng_state(), before)
