"""Configurations that say layers one by one, held against copies of the names that their readers have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from fairkern.hf.block_configs import block_configs, per_layer_config, uneven_config
from fairkern.hf.blocks import Block, Blocks, Rows

# Fields of AttentionConfig and FFNConfig in block_config.py beside nvidia/Llama-3_1-Nemotron-51B-Instruct, as mlx-lm's
# nemotron-nas.py and vLLM's model_executor/models/nemotron_nas.py read them.
DECI = {
    "attention": {
        "no_op",
        "replace_with_linear",
        "sparsify",
        "n_heads_in_group",
        "window_length",
        "num_sink_tokens",
        "use_prefill_window_in_sink_attention",
        "unshifted_sink",
    },
    "ffn": {"no_op", "replace_with_linear", "sparsify", "ffn_mult", "intermediate_size"},
}
# Fields of the same two in modelopt/torch/puzzletron/block_config.py (Model-Optimizer, 2026), of which vLLM's
# model_executor/models/anymodel.py reads no_op, num_key_value_heads, intermediate_size, hidden_act and moe.
MODELOPT = {
    "attention": {
        "no_op",
        "replace_with_linear",
        "sparsify",
        "weights_precision",
        "num_key_value_heads",
        "llama4",
        "mamba",
    },
    "ffn": {"no_op", "replace_with_linear", "sparsify", "weights_precision", "moe", "intermediate_size"},
}
# Kinds of what a layer of Llama skips (tests/heterogeneity of transformers, 2026).
SKIPS = {"attention", "mlp"}


def block(heads: int, key_heads: int, width: int) -> Block:
    return Block(heads, key_heads, width, {"o.weight": Rows("o"), "down.weight": Rows("down")})


BLOCKS = Blocks(64, 128, 16, (block(4, 2, 512), block(4, 1, 96), block(0, 0, 48), block(4, 4, 0)), {})
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 8, "hidden_size": 64}


@pytest.mark.parametrize(("schema", "names"), [("deci", DECI), ("anymodel", MODELOPT)])
def test_names_are_those_of_the_schema(schema: str, names: dict[str, set[str]]) -> None:
    found = block_configs(BLOCKS, schema)
    assert len(found) == 4
    for entry in found:
        assert entry.keys() == names.keys() == {"attention", "ffn"}
        for part, fields in names.items():
            assert entry[part].keys() <= fields
            assert entry[part].keys() >= {"no_op", "replace_with_linear"}
    assert [entry["attention"]["no_op"] for entry in found] == [False, False, True, False]
    assert [entry["ffn"]["no_op"] for entry in found] == [False, False, False, True]
    assert [entry["ffn"]["intermediate_size"] for entry in found] == [512, 96, 48, None]


def test_deci_counts_query_heads_by_key_head() -> None:
    found = block_configs(BLOCKS, "deci")
    assert [entry["attention"]["n_heads_in_group"] for entry in found] == [2, 4, None, 1]


@pytest.mark.parametrize("width", [256, 512, 14336, 11008])
@pytest.mark.parametrize("hidden", [64, 4096, 5120])
def test_deci_multiples_give_the_width_back(width: int, hidden: int) -> None:
    blocks = Blocks(hidden, 128, 16, (block(4, 2, width),), {})
    multiple = block_configs(blocks, "deci")[0]["ffn"].get("ffn_mult")
    assert (multiple is None) == bool(width % 256)
    if multiple is not None:
        size = int(2 * multiple * hidden / 3)
        assert size + -size % 256 == width  # as DeciLM rounds it


def test_modelopt_counts_key_heads() -> None:
    found = block_configs(BLOCKS, "anymodel")
    assert [entry["attention"]["num_key_value_heads"] for entry in found] == [2, 1, None, 4]


def test_per_layer_config_says_what_differs() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512}
    assert per_layer_config(BLOCKS, config) == {
        "1": {"num_key_value_heads": 1, "intermediate_size": 96},
        "2": {"intermediate_size": 48, "skip": ["attention"]},
        "3": {"num_key_value_heads": 4, "skip": ["mlp"]},
    }
    assert {name for entry in per_layer_config(BLOCKS, config).values() for name in entry.get("skip", [])} <= SKIPS


def test_numbers_for_all_are_the_largest() -> None:
    found = uneven_config(CONFIG, BLOCKS, "anymodel")
    assert found["architectures"] == ["AnyModel"]
    assert (found["base_architecture"], found["model_type"]) == ("LlamaForCausalLM", "llama")
    assert (found["num_attention_heads"], found["num_key_value_heads"], found["intermediate_size"]) == (4, 4, 512)
    assert (found["num_hidden_layers"], found["head_dim"]) == (4, 16)
    deci = uneven_config(CONFIG, BLOCKS, "deci")
    assert (deci["architectures"], deci["model_type"]) == (["DeciLMForCausalLM"], "nemotron-nas")


def test_blocks_that_went_whole_are_not_counted() -> None:
    blocks = Blocks(64, 128, 16, (*BLOCKS.blocks, Block(0, 0, 0, {}), Block(0, 0, 0, {})), {})
    assert uneven_config(CONFIG, blocks, "anymodel") == uneven_config(CONFIG, BLOCKS, "anymodel")


def test_query_heads_that_differ_have_no_entry() -> None:
    blocks = Blocks(64, 128, 16, (block(4, 2, 512), block(2, 1, 512)), {})
    with pytest.raises(fk.InputError, match=r"layers have 2, 4 query heads.*serve=\"vllm\""):
        block_configs(blocks, "deci")
    with pytest.raises(fk.InputError, match="the schema is 'vllm'; expected one of deci, anymodel"):
        uneven_config(CONFIG, BLOCKS, "vllm")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A model whose widths differ, its plan, and the folder that it came from."""
    transformers = pytest.importorskip("transformers")
    from tests.hf.decoders import IDS, SIZES, built

    model = built(transformers.LlamaConfig(**SIZES))
    like = tmp_path_factory.mktemp("cut") / "like"
    model.save_pretrained(like)
    options: dict[str, Any] = {"keep_params": 0.7, "ignore": ["*self_attn*"], "biases": False, "progress": False}
    small, report = fk.prune(model, [{"input_ids": IDS, "labels": IDS}], **options)
    return small, report.plan, like


def test_transformers_reads_what_is_written(cut: tuple[Any, Any, Path], tmp_path: Path) -> None:
    import transformers

    small, plan, like = cut
    widths = [layer.mlp.down_proj.in_features for layer in small.model.layers]
    assert len(set(widths)) > 1
    fk.hf.save_uneven(small, plan, tmp_path / "out", like=like, schema="anymodel")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.is_heterogeneous
    assert [layer.intermediate_size for layer in config.per_layer_config] == widths
    assert config.intermediate_size == max(widths)  # asked of all
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [entry["ffn"]["intermediate_size"] for entry in written["block_configs"]] == widths


@pytest.mark.parametrize("schema", [None, "anymodel"])
def test_the_folder_becomes_a_gguf_file(schema: str | None, cut: tuple[Any, Any, Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.hf import read_back
    from tests.hf.decoders import PROMPT, away, logits_of

    small, plan, like = cut
    fk.hf.save_uneven(small, plan, tmp_path / "out", like=like, schema=schema)
    done = fk.hf.export_gguf(tmp_path / "out", tmp_path / "model.gguf", "f32")
    assert done.architecture == "deci"
    assert away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(small, PROMPT)) < 1e-5


def test_without_a_schema_it_loads_again(cut: tuple[Any, Any, Path], tmp_path: Path) -> None:
    import transformers

    from tests.hf.decoders import PROMPT, logits_of

    small, plan, like = cut
    fk.hf.save_uneven(small, plan, tmp_path / "out", like=like)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    fresh = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    again = fk.load_pruned(fresh, tmp_path / "out").eval()
    assert torch.equal(logits_of(again, PROMPT), logits_of(small, PROMPT))


def test_deci_folders_say_so(cut: tuple[Any, Any, Path], tmp_path: Path) -> None:
    small, plan, like = cut
    fk.hf.save_uneven(small, plan, tmp_path / "out", like=like, schema="deci")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["DeciLMForCausalLM"]
    assert [entry["attention"]["n_heads_in_group"] for entry in written["block_configs"]] == [2, 2, 2]


def test_biases_without_a_field_are_refused(cut: tuple[Any, Any, Path], tmp_path: Path) -> None:
    small, plan, like = copy.deepcopy(cut)
    small.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(torch.ones(64))
    with pytest.raises(fk.InputError, match="layer 1 holds the bias of 'down', where the configuration says otherwise"):
        fk.hf.save_uneven(small, plan, tmp_path / "out", like=like, schema="deci")
    assert not (tmp_path / "out").exists()
