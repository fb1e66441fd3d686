"""Folders as GGUF files: each is read back by the gguf package, and computed by an oracle that goes by it alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from tests.hf.decoders import PROMPT, SIZES, away, built, logits_of, pruned, without

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
pytest.importorskip("safetensors")

from tests.hf import read_back  # noqa: E402, it imports gguf

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def llama(**given: Any) -> Any:
    return transformers.LlamaConfig(**{**SIZES, **given})


FAMILIES = {
    "llama": (lambda: llama(), "llama"),
    "llama, biases, tied": (lambda: llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), "llama"),
    "llama 3": (lambda: llama(rope_parameters=LLAMA3, head_dim=16, max_position_embeddings=4096), "llama"),
    "linear": (lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}), "llama"),
    "mistral": (lambda: transformers.MistralConfig(**SIZES, sliding_window=None), "llama"),
    "qwen2": (lambda: transformers.Qwen2Config(**SIZES), "qwen2"),
    "qwen2, wide heads": (lambda: transformers.Qwen2Config(**SIZES, head_dim=16), "llama"),
    "qwen3": (lambda: transformers.Qwen3Config(**SIZES, head_dim=16), "qwen3"),
    "gemma": (lambda: transformers.GemmaConfig(**SIZES, head_dim=16), "gemma"),
    "phi3": (lambda: transformers.Phi3Config(**SIZES, pad_token_id=0, eos_token_id=1, bos_token_id=2), "llama"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_layers_are_the_familys_own_architecture(name: str, tmp_path: Path) -> None:
    config, architecture = FAMILIES[name]
    model = built(config())
    model.save_pretrained(tmp_path / "folder")
    done = fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    assert done.architecture == read_back.File(tmp_path / "model.gguf").architecture == architecture
    assert done.widths == (96, 96, 96)
    assert away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(model, PROMPT)) < 1e-5


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A pruned and compensated model whose layers differ, and its folder."""
    folder = tmp_path_factory.mktemp("uneven") / "folder"
    return folder, pruned(llama(), folder, keep_params=0.7)


def test_layers_that_differ_are_deci(uneven: tuple[Path, Any], tmp_path: Path) -> None:
    folder, small = uneven
    done = fk.hf.export_gguf(folder, tmp_path / "model.gguf", "f32")
    assert done.architecture == "deci"
    assert len(set(done.widths)) > 1
    file = read_back.File(tmp_path / "model.gguf")
    assert file.fields["deci.feed_forward_length"] == list(done.widths)
    assert file.fields["tokenizer.ggml.model"] == "no_vocab"
    assert file.fields["deci.vocab_size"] == 128
    assert any(name.endswith("ffn_down.bias") for name in file.tensors)  # what compensation added
    assert away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(small, PROMPT)) < 1e-5


MISSING = {
    "attention of the first layer": ({"attention": (0,)}, (96, 96, 96), False),
    "attention and MLP of two layers": ({"attention": (1,), "mlp": (2,)}, (96, 96, 32), False),
    "MLP of the last layer": ({"mlp": (2,)}, (96, 96, 32), False),
    "attention of the last layer": ({"attention": (2,)}, (96, 96, 96), False),
    "a whole layer": ({"attention": (1,), "mlp": (1,)}, (96, 96), False),
    "the first layer and attention of the next": ({"attention": (0, 1), "mlp": (0,)}, (96, 96), False),
    "all": ({"attention": (0, 1, 2), "mlp": (0, 1, 2)}, (32,), False),
    "all but biases": ({"attention": (1, 2), "mlp": (0, 2)}, (32, 96, 32), True),
}


@pytest.mark.parametrize("name", MISSING)
def test_parts_that_are_not_there(name: str, tmp_path: Path) -> None:
    parts, widths, biases = MISSING[name]
    model = built(llama(attention_bias=biases, mlp_bias=biases))
    without(model, tmp_path / "folder", **parts)
    done = fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "f32")
    assert (done.architecture, done.widths) == ("deci", widths)
    assert done.heads[0]  # llama.cpp takes the size of heads from there
    assert away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(model, PROMPT)) < 1e-5


@pytest.mark.parametrize(("type_", "bound"), [("f32", 1e-5), ("f16", 3e-3), ("bf16", 3e-2), ("q8_0", 5e-2)])
def test_types(type_: str, bound: float, tmp_path: Path) -> None:
    model = built(llama())
    model.save_pretrained(tmp_path / "folder", max_shard_size="40KB")
    assert (tmp_path / "folder" / "model.safetensors.index.json").is_file()
    fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", type_)
    file = read_back.File(tmp_path / "model.gguf")
    assert {file.types[name] for name in ("token_embd.weight", "blk.1.ffn_down.weight")} == {type_.upper()}
    assert {file.types[name] for name in ("output_norm.weight", "blk.1.attn_norm.weight")} == {"F32"}
    found = away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(model, PROMPT))
    assert found < bound
    assert type_ == "f32" or found > 1e-6


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    built(llama()).to(torch.bfloat16).save_pretrained(tmp_path / "folder")
    for name in ("one", "two"):
        fk.hf.export_gguf(tmp_path / "folder", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def refused(folder: Path, what: str, *args: Any, error: type[Exception] = fk.InputError) -> None:
    """An error of one line, and nothing is written."""
    out = folder.parent / "refused.gguf"
    with pytest.raises(error, match=what) as raised:
        fk.hf.export_gguf(folder, out, *args)
    assert "\n" not in str(raised.value)
    assert not out.exists()
    assert not [name for name in os.listdir(folder.parent) if name.endswith(".tmp")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built(llama()).save_pretrained(tmp_path / "folder", max_shard_size="40KB")
    return tmp_path / "folder"


def changed(folder: Path, **given: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))


def test_bad_folders(folder: Path) -> None:
    refused(folder.parent / "absent", "is not there")
    refused(folder, "the type is 'q4'", "q4")
    shards = sorted(folder.glob("*-of-*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-9])
    refused(folder, "truncated", error=fk.ArtefactError)
    shards[1].unlink()
    refused(folder, f"lacks {shards[1].name}")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    refused(folder, "no weights")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", "8"),
        ("num_key_value_heads", -1),
        ("head_dim", True),
        ("head_dim", 7),
        ("hidden_act", "swoosh"),
        ("hidden_act", None),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", -1e-6),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "much"}),
        ("sliding_window", "wide"),
        ("model_type", [1]),
        ("per_layer_config", "odd"),
        ("quantization_config", 0),
    ],
)
def test_configurations_that_say_nonsense(field: str, value: Any, folder: Path) -> None:
    changed(folder, **{field: value})
    refused(folder, ".")


def test_places_that_cannot_be_written(folder: Path) -> None:
    for out in (folder, folder / "config.json" / "model.gguf", folder / "absent" / "model.gguf"):
        with pytest.raises(fk.InputError, match=r"cannot write .*(folder|directory)"):
            fk.hf.export_gguf(folder, out)


def test_damage_is_noticed_before_a_file_appears(uneven: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(uneven[0], tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    refused(tmp_path / "folder", "does not have the sum", "f32", error=fk.ArtefactError)


def test_an_interrupt_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf.GGUFWriter, "write_ti_data_to_file", interrupted)
    out = folder.parent / "model.gguf"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fk.hf.export_gguf(folder, out)
    assert out.read_text() == "old"
    assert sorted(os.listdir(folder.parent)) == ["folder", "model.gguf"]


def test_quantised_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    changed(folder, quantization_config={"quant_method": "awq", "bits": 4})
    refused(folder, "quantised weights .awq")
    changed(folder, quantization_config=None)
    path = sorted(folder.glob("*-of-*.safetensors"))[0]
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}, path)
    refused(folder, "float8")


def test_q8_0_wants_rows_of_whole_blocks(uneven: tuple[Path, Any], tmp_path: Path) -> None:
    refused(uneven[0], r"mlp\.down_proj\.weight with \d+.*gguf:q8_0", "q8_0")
    small = pruned(llama(), tmp_path / "folder", keep_params=0.7, round_to=32, ignore=["*self_attn*"])
    fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf", "q8_0")
    assert away(read_back.logits(tmp_path / "model.gguf", PROMPT), logits_of(small, PROMPT)) < 0.1


def test_numbers_that_f16_has_not(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = next(path for path in folder.glob("*-of-*.safetensors") if "lm_head.weight" in load_file(path))
    tensors = load_file(path)
    tensors["lm_head.weight"][3, 4] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, "lm_head.weight holds 1e.06, beyond what f16 can")
    fk.hf.export_gguf(folder, folder.parent / "model.gguf", "bf16")
    tensors["lm_head.weight"][3, 4] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, "not finite", "bf16")


def test_weights_that_are_missing_are_no_part_that_went(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = {name: value for path in folder.glob("*-of-*.safetensors") for name, value in load_file(path).items()}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for start, part in (("model.layers.2.", "attention"), ("model.layers.0.mlp.", "mlp")):
        left = {name: value for name, value in whole.items() if not name.startswith(start)}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        refused(folder, f"no weights for the {part} of layer {start[13]}, and config.json does not say")
    left = {name: value for name, value in whole.items() if name != "model.layers.1.self_attn.k_proj.weight"}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "a layer lacks the weight 'k'")


def test_an_output_that_is_tied_and_differs(folder: Path) -> None:
    changed(folder, tie_word_embeddings=True)
    refused(folder, "ties the output to the embedding, and lm_head.weight differs")


def test_the_size_of_heads_is_not_guessed(tmp_path: Path) -> None:
    model = built(llama(num_attention_heads=4, num_key_value_heads=4))
    model.save_pretrained(tmp_path / "folder")
    written = json.loads((tmp_path / "folder" / "config.json").read_text())
    changed(tmp_path / "folder", num_attention_heads=8, num_key_value_heads=8, head_dim=None)
    fk.hf.export_gguf(tmp_path / "folder", tmp_path / "model.gguf")  # 8 heads of 8 fit as well, and are what it says
    changed(tmp_path / "folder", num_attention_heads=2, num_key_value_heads=2, hidden_size=32)
    assert written["head_dim"] == 16
    refused(tmp_path / "folder", "of which size a head is cannot be told")


def test_uneven_layers_with_norms_of_heads_have_no_place(tmp_path: Path) -> None:
    pruned(transformers.Qwen3Config(**SIZES, head_dim=16), tmp_path / "folder", keep_params=0.7, compensate="none")
    refused(tmp_path / "folder", "not qwen3: the model has layers of different sizes.*not deci.*k_norm")


def test_biases_have_no_place_in_qwen3(tmp_path: Path) -> None:
    model = built(transformers.Qwen3Config(**SIZES, head_dim=16, attention_bias=True))
    model.save_pretrained(tmp_path / "folder")
    refused(tmp_path / "folder", r"not qwen3: the model has 'o.bias' \(model.layers.0.self_attn.o_proj.bias\)")
