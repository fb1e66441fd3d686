"""GGUF files in llama.cpp itself: its logits and greedy tokens against those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fairkern as fk
from tests.hf.decoders import PROMPT, SIZES, away, built, greedy, logits_of, pruned, without

transformers = pytest.importorskip("transformers")
llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("safetensors")

COUNT = 64
F32 = 0  # of ggml's types, for what it keeps of keys and values
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def in_llama_cpp(path: Path, tokens: list[int], count: int = COUNT) -> tuple[Tensor, list[int]]:
    """Logits [n, vocabulary] of some tokens, and those with `count` greedy ones behind them."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, type_k=F32, type_v=F32, logits_all=True, verbose=False)
    try:
        model.eval(tokens)
        first = torch.tensor(model.scores[: len(tokens)])
        told = list(tokens)
        for _ in range(count):
            told.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(told[-1:])
        return first, told
    finally:
        model.close()


def same(path: Path, model: Any) -> None:
    expected = greedy(model, PROMPT, COUNT)
    found, told = in_llama_cpp(path, PROMPT)
    assert len(set(expected)) > 8, "tokens that repeat compare nothing"
    assert away(found, logits_of(model, PROMPT)) < 1e-5
    assert told == expected


def four_layers(kind: str, **given: Any) -> Any:
    return getattr(transformers, kind)(**{**SIZES, "num_hidden_layers": 4, **given})


PLANS = {
    "heads": (lambda: four_layers("LlamaConfig"), {"keep_params": 0.8, "ignore": ["*mlp*"]}),
    "tied, with biases": (
        lambda: four_layers("LlamaConfig", num_key_value_heads=8, attention_bias=True, tie_word_embeddings=True),
        {"keep_params": 0.75, "ignore": ["*mlp*"]},
    ),
    "wide heads": (lambda: four_layers("MistralConfig", head_dim=32, sliding_window=None), {"keep_params": 0.6}),
    "qwen2": (lambda: four_layers("Qwen2Config"), {"keep_params": 0.5}),
    "llama 3": (lambda: four_layers("LlamaConfig", rope_parameters=LLAMA3), {"keep_params": 0.55}),
    "branches": (lambda: four_layers("Qwen2Config"), {"keep_params": 0.5, "depth": True}),
    "blocks": (lambda: four_layers("LlamaConfig"), {"keep_params": 0.4, "depth": True}),
}


@pytest.mark.parametrize("name", PLANS)
def test_uneven_plans_give_the_same_tokens(name: str, tmp_path: Path) -> None:
    config, options = PLANS[name]
    small = pruned(config(), tmp_path / "folder", serve="deci", **options)
    done = fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    assert done.architecture == "deci"
    assert len(set(zip(done.heads, done.widths, strict=True))) > 1
    assert any(key.endswith(("o_proj.bias", "down_proj.bias")) for key in small.state_dict())
    if "depth" in options:  # an MLP of zeros stands where one went; a block that went is not there
        assert 32 in done.widths or len(done.widths) < 4
    same(tmp_path / "model.gguf", small)


@pytest.mark.parametrize(
    "kind", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "GemmaConfig"], ids=lambda kind: kind.removesuffix("Config")
)
def test_equal_layers_give_the_same_tokens(kind: str, tmp_path: Path) -> None:
    given = {} if kind == "Qwen2Config" else {"head_dim": 16}
    model = built(four_layers(kind, **given))
    model.save_pretrained(tmp_path / "folder")
    fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    if kind != "GemmaConfig":
        same(tmp_path / "model.gguf", model)
    else:  # whose activation it looks up in a table of half precision
        found, told = in_llama_cpp(tmp_path / "model.gguf", PROMPT)
        assert away(found, logits_of(model, PROMPT)) < 1e-2
        assert told[:16] == greedy(model, PROMPT, 11)


@pytest.mark.parametrize("biases", [False, True])
def test_parts_that_are_not_there(biases: bool, tmp_path: Path) -> None:
    model = built(four_layers("LlamaConfig", attention_bias=biases, mlp_bias=biases))
    without(model, tmp_path / "folder", attention=(0, 2), mlp=(2, 3))
    done = fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    assert len(done.heads) == (4 if biases else 3)  # the third layer adds nothing, or a constant
    same(tmp_path / "model.gguf", model)


def test_attention_that_is_not_there_between_others(tmp_path: Path) -> None:
    model = built(four_layers("LlamaConfig", tie_word_embeddings=True))
    without(model, tmp_path / "folder", attention=(1, 3))
    done = fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    assert done.heads == (8, 0, 8, 0)
    same(tmp_path / "model.gguf", model)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A pruned model whose widths are multiples of 32, and its folder."""
    folder = tmp_path_factory.mktemp("rounded") / "folder"
    options = {"keep_params": 0.8, "round_to": 32, "ignore": ["*self_attn*"]}
    return folder, pruned(four_layers("LlamaConfig"), folder, **options)


@pytest.mark.parametrize("type_", ["f16", "bf16", "q8_0"])
def test_types_load(type_: str, rounded: tuple[Path, Any], tmp_path: Path) -> None:
    folder, small = rounded
    fk.hf.export_gguf(folder, tmp_path / "model.gguf", type_)
    found, _ = in_llama_cpp(tmp_path / "model.gguf", PROMPT, 1)
    assert away(found, logits_of(small, PROMPT)) < (0.1 if type_ == "q8_0" else 0.03)
