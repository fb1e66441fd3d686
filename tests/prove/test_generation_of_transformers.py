"""Models of transformers as they come, with their caches on: what goes, and that the cut model generates like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal

transformers = pytest.importorskip("transformers")

D = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
G = {**D, "intermediate_size": 24, "num_key_value_heads": 2}
MAMBA = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
SEQUENCES = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
# class, fields of its configuration, how many groups of heads can be cut at least
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama": ("LlamaForCausalLM", G, 2),
    "Gemma2": ("Gemma2ForCausalLM", {**G, "head_dim": 4, "sliding_window": 3}, 2),
    "Falcon": ("FalconForCausalLM", {**D, "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}, 2),
    "Mamba": ("MambaForCausalLM", MAMBA, 0),
    "Mamba2": ("Mamba2ForCausalLM", {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}, 2),
    "RecurrentGemma": ("RecurrentGemmaForCausalLM", {**G, "block_types": ("recurrent", "attention")}, 1),
    "T5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0, "pad_token_id": 0}, 2),
    "Bart": ("BartForConditionalGeneration", SEQUENCES, 5),
}


def make(name: str) -> nn.Module:
    kind, fields, _ = CASES[name]
    built = getattr(transformers, kind)
    torch.manual_seed(0)
    model: nn.Module = built(built.config_class(**fields)).eval()
    assert model.config.use_cache
    return model


@pytest.mark.parametrize("name", CASES)
def test_cut_generates_as_masked(name: str) -> None:
    model = make(name)
    ids = torch.randint(3, 32, (2, 7))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :3]
    units = fk.trace(model, inputs)
    assert sum(g.kind == "head" and g.frozen is None for g in units.groups) >= CASES[name][2]
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    small = fk.apply(model, plan)
    asked = {**inputs, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    for how in ({"use_cache": True}, {"use_cache": False}, {"num_beams": 2}):
        with torch.no_grad(), plan.masked(model):
            expected = model.generate(**asked, **how, output_logits=True, return_dict_in_generate=True)
        found = small.generate(**asked, **how, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(found.sequences, expected.sequences)
        for a, b in zip(found.logits, expected.logits, strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=0)
