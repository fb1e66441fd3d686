"""What `save_pretrained` writes of a compensated model, `from_pretrained` brings back: nothing missing or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.compensate.intercepts import flags_of
from fairkern.plans.build import build

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "vocab_size": 67, "use_cache": False}  # fmt: skip
HEADS = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
# class, configuration, its options, layers that get a bias, fields that are set, weights that are fitted through zero
FAMILIES: dict[str, tuple[str, str, dict[str, Any], set[str], set[str], set[str]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}, HEADS | GATED, {"attention_bias", "mlp_bias"}, set()),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 8}, HEADS, {"attention_bias"}, {"mlp.down_proj"}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 8}, HEADS, {"attention_bias"}, {"mlp.down_proj"}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"head_dim": 8}, set(), set(),
                {"self_attn.o_proj", "mlp.down_proj"}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "head_dim": 8}, set(), set(),
                {"self_attn.o_proj", "mlp.experts.down_proj"}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {"pad_token_id": 0}, set(), set(), {"self_attn.o_proj", "mlp.down_proj"}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}, set(), set(), set()),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 16},
            set(), set(), set()),
}  # fmt: skip
CONFIGURED = ("llama", "qwen3", "gemma", "mistral")  # families whose configuration follows the widths


def made(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind, configuration, options, *_ = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, configuration)(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def short(name: str) -> str:
    """`model.layers.0.mlp.down_proj.weight` → `mlp.down_proj`."""
    return name.partition("layers.")[2].partition(".")[2].removesuffix(".weight").removesuffix(".bias")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    model = made(name)
    own = [n for n, _ in model.named_parameters()]
    ids = torch.randint(3, 67, (8, 12), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": part, "labels": part} for part in ids.split(4)]
    units = fk.trace(model, {"input_ids": ids[:2]})
    heads = name in CONFIGURED or name == "mixtral"
    gone = [
        np.arange(g.units // 2)[None].repeat(g.sets, 0) if g.sets > 1 else np.arange(g.units // 2)
        if g.frozen is None and g.kind in ("neuron", *(("head",) if heads else ()))
        else np.zeros(0, np.int64)
        for g in units.groups
    ]  # fmt: skip
    scores = fk.score(model, data, units=units, class_of=False, gram=True, progress=False)
    plan = fk.Plan(**vars(build(units, gone)))
    assert plan.result["units_removed"]
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=data)
    _, _, _, given, fields, _ = FAMILIES[name]
    added = [n for n, _ in small.named_parameters() if n not in own]
    assert {short(n) for n in added} == given
    assert {n for n, value in vars(small.config).items() if value and not vars(model.config).get(n)} >= fields
    ends = ("o_proj", "down_proj")
    assert all(n.split(".")[-2] in ends for n in added if torch.count_nonzero(small.get_parameter(n)))
    fk.save_pruned(small, plan, tmp_path / "ours")
    with torch.no_grad():
        expected = small(input_ids=ids).logits
        assert torch.equal(fk.load_pruned(made(name), tmp_path / "ours")(input_ids=ids).logits, expected)
    if name in CONFIGURED:
        small.save_pretrained(tmp_path / "theirs")
        again, info = type(model).from_pretrained(tmp_path / "theirs", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "phi3", "gpt2", "opt"])
def test_the_report_names_what_is_fitted_through_zero(name: str) -> None:
    model = made(name)
    ids = torch.randint(3, 67, (8, 12), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": part, "labels": part} for part in ids.split(4)]
    _, report = fk.prune(model, data, keep_params=0.8, compensate="least_squares", progress=False)
    *_, fields, through_zero = FAMILIES[name]
    assert {short(n) for n in report.choices["through_zero"]} <= through_zero
    assert bool(report.choices["through_zero"]) == bool(through_zero)
    assert {n for n, (before, _) in report.choices["config"].items() if before is False} <= fields
    assert ("fitted without a bias" in report.table()) == bool(through_zero)


def test_fields_of_a_configuration_within_another() -> None:
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    parts = {"vision": transformers.CLIPVisionConfig(**vision), "text": transformers.LlamaConfig(**SMALL)}
    config = transformers.LlavaConfig(**{f"{part}_config": inner for part, inner in parts.items()})
    flags = flags_of(transformers.LlavaForConditionalGeneration(config))
    found = {flag.change.name: {short(name) for name in flag.biases} for flag in flags if not isinstance(flag, str)}
    assert found["text_config.mlp_bias"] == GATED
    assert found["text_config.attention_bias"] == HEADS


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("llama", HEADS | GATED),
        ("mistral", {"self_attn.o_proj", "mlp.down_proj"}),
        ("qwen3", set()),
        ("mixtral", set()),
    ],
)
def test_for_llama_cpp(name: str, given: set[str]) -> None:
    """What deci can hold has them at output and down projections; qwen3 and experts are read without."""
    model = made(name)
    ids = torch.randint(3, 67, (8, 12), generator=torch.Generator().manual_seed(1))
    units = fk.trace(model, {"input_ids": ids[:2]})
    data = [{"input_ids": ids, "labels": ids}]
    scores = fk.score(model, data, units=units, class_of=False, gram=True, progress=False)
    gone = [
        np.zeros((g.sets, 1) if g.sets > 1 else 1, np.int64)
        if g.frozen is None and g.kind in ("head", "neuron")
        else np.zeros(0, np.int64)
        for g in units.groups
    ]
    plan = fk.Plan(**vars(build(units, gone, {"serve": "gguf:q8_0"})))
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    own = {n for n, _ in model.named_parameters()}
    assert {short(n) for n, _ in small.named_parameters() if n not in own} == given
