"""Folders that lack something, are damaged, or hold what cannot be cut: refused by name, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from fairkern.hf.folder import open_folder

transformers = pytest.importorskip("transformers")


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shard(folder: Path) -> list[Path]:
    """The same weights in several files and an index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    found = sorted(folder.glob("model-*.safetensors"))
    assert len(found) > 2
    return found


def cut_short(path: Path, by: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_config(folder: Path) -> None:
    cut_short(folder / "config.json", 20)


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    cut_short(folder / "model.safetensors")


def truncate_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])


def remove_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def truncate_shard(folder: Path) -> None:
    cut_short(shard(folder)[-1])


def swap_shards(folder: Path) -> None:
    first, second, *_ = shard(folder)
    first.write_bytes(second.read_bytes())


def damage_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def quantised(method: str, **more: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, quantization_config={"quant_method": method, **more})


def rename_weight(end: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        path = folder / "model.safetensors"
        weights = safetensors.load_file(path)
        weights["model.layers.0.mlp.up_proj" + end] = weights.pop("model.layers.0.mlp.up_proj.weight")
        safetensors.save_file(weights, path)

    return change


def bring_code(folder: Path) -> None:
    change_config(folder, model_type="unheard-of", auto_map={"AutoModelForCausalLM": "modeling.Model"})


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove_config, "has no config.json; expected a folder"),
    "half a config": (damage_config, "config.json is truncated or not JSON"),
    "no weights": (remove_weights, "has no weights: expected one of model.safetensors"),
    "truncated": (truncate_weights, "model.safetensors is truncated"),
    "half a header": (truncate_header, "model.safetensors is truncated"),
    "no shard": (remove_shard, "lacks model-00002-of-00004.safetensors, one of . files of its weights"),
    "truncated shard": (truncate_shard, r"model-0000.-of-0000.\.safetensors is truncated"),
    "shards of others": (swap_shards, "which the index beside it looks for there"),
    "empty index": (damage_index, "has no weight_map"),
    "fp8": (quantised("fp8", weight_block_size=[128, 128]), r"quantised weights \(fp8\).*FineGrainedFP8Config"),
    "mxfp4": (quantised("mxfp4"), r"quantised weights \(mxfp4\).*Mxfp4Config\(dequantize=True\)"),
    "awq": (quantised("awq", bits=4), r"quantised weights \(awq\).*the checkpoint that it was quantised from"),
    "gptq": (quantised("gptq", bits=4), r"quantised weights \(gptq\).*quantise what is left again"),
    "bitsandbytes": (quantised("bitsandbytes"), r"quantised weights \(bitsandbytes\).*model.dequantize"),
    "quantised unsaid": (rename_weight(".qweight"), r"quantised weights \(AWQ or GPTQ\)"),
    "scales unsaid": (rename_weight(".weight_scale_inv"), r"quantised weights \(fp8\).*FineGrainedFP8Config"),
    "own code": (bring_code, "brings code of its own.*trust_remote_code=True"),
    "unknown": (lambda folder: change_config(folder, model_type="unheard-of"), "names the model type 'unheard-of'"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(folder: Path, name: str) -> None:
    spoil, said = BAD[name]
    spoil(folder)
    with pytest.raises(fk.FairkernError, match=said) as caught:
        open_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(fk.InputError, match=r"meta-llama/Llama-3-8B is not there.*hf download"):
        open_folder("meta-llama/Llama-3-8B")
    (tmp_path / "file").write_text("")
    with pytest.raises(fk.InputError, match="is a file; expected a folder"):
        open_folder(tmp_path / "file")


def test_shards_and_old_files_are_read(folder: Path) -> None:
    whole, _ = open_folder(folder).load(None, torch.device("cpu"))
    assert open_folder(folder).shards == ("model.safetensors",)
    found = shard(folder)
    assert open_folder(folder).shards == tuple(path.name for path in found)
    sharded, _ = open_folder(folder).load(None, torch.device("cpu"))
    for path in (*found, folder / "model.safetensors.index.json"):
        path.unlink()
    torch.save(whole.state_dict(), folder / "pytorch_model.bin")
    old, _ = open_folder(folder).load(None, torch.device("cpu"))
    for model in (sharded, old):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    cut_short(folder / "pytorch_model.bin")
    with pytest.raises(fk.ArtefactError, match=r"pytorch_model.bin is truncated"):
        open_folder(folder)


def test_weights_that_would_be_random_are_refused(folder: Path) -> None:
    rename_weight("_renamed.weight")(folder)
    with pytest.raises(fk.InputError, match=r"lacks model.layers.0.mlp.up_proj.weight, of what config.json says"):
        open_folder(folder).load(None, torch.device("cpu"))


def test_shapes_that_the_configuration_does_not_have_are_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=128)
    with pytest.raises(
        fk.InputError, match=r"holds in another shape model.layers.0.mlp.down_proj.weight and 11 further"
    ):
        open_folder(folder).load(None, torch.device("cpu"))


def test_a_configuration_that_its_class_refuses(folder: Path) -> None:
    change_config(folder, num_attention_heads=7)
    with pytest.raises(fk.InputError, match="cannot be loaded by transformers: "):
        open_folder(folder).load(None, torch.device("cpu"))


def test_no_causal_language_model(folder: Path) -> None:
    transformers.BertModel(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(folder)
    transformers.ViTConfig().save_pretrained(folder)
    with pytest.raises(fk.InputError, match=r"cannot be loaded by transformers: .*ViTConfig"):
        open_folder(folder).load(None, torch.device("cpu"))


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(fk.InputError, match=r"has no tokenizer.*lists of token ids"):
        open_folder(folder).tokenizer()


def test_a_damaged_tokenizer(folder: Path) -> None:
    cut_short(folder / "tokenizer.json")
    with pytest.raises(fk.InputError, match=r"the tokenizer of .* cannot be loaded"):
        open_folder(folder).tokenizer()


OWN_CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_folder_runs_for_who_trusts_it(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own.py").write_text(OWN_CODE)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    change_config(folder, auto_map=names)
    model, _ = open_folder(folder).load(None, torch.device("cpu"))
    assert type(model) is transformers.LlamaForCausalLM  # transformers knows the type: its own class, no code
    change_config(folder, model_type="own-llama", architectures=["Own"])
    with pytest.raises(fk.InputError, match="trust_remote_code=True"):
        open_folder(folder)
    assert not list(tmp_path.rglob("ran"))
    model, _ = open_folder(folder, trust_remote_code=True).load(None, torch.device("cpu"))
    assert type(model).__name__ == "Own"
    assert list(tmp_path.rglob("ran"))


def test_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from fairkern.hf import needed

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else found(name))
    with pytest.raises(
        fk.InputError, match=r'package accelerate, which is not installed: pip install "fairkern\[hf\]"'
    ):
        needed.transformers()
    monkeypatch.undo()
    monkeypatch.setattr(needed, "_OLDEST", 99)
    with pytest.raises(fk.InputError, match=r"transformers [\d.]+ is installed; expected 99 or newer"):
        needed.transformers()


def test_transformers_says_what_it_said_before() -> None:
    from fairkern.hf.needed import quiet

    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)
