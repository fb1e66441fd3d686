"""`fk.hf.prune`: a folder in, a smaller folder out, and a report that is true."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from bench.shipping.families import documents, make_folder
from fairkern.hf.folder import open_folder
from fairkern.hf.measures import cache_bytes_per_token, perplexity
from fairkern.hf.sequences import Layout, batches
from fairkern.hf.text import read_documents

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"sequence": 32, "samples": 12, "progress": False}


def open_again(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    return model.eval()


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def pruned(made: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fk.Report]:
    out = tmp_path_factory.mktemp("pruned") / "out"
    return out, fk.hf.prune(made, text, out=out, keep_params=0.7, **SMALL)


def test_the_report_is_that_of_the_folder(pruned: tuple[Path, fk.Report], made: Path, text: Path) -> None:
    out, report = pruned
    before, after = open_again(made), open_again(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    data = batches(read_documents(text, tokenizer), tokenizer, Layout(32, 12, 0.1, 4, True, "right"), 320)
    for model, said in ((before, report.before), (after, report.after)):
        assert said["params"] == parameters(model)
        assert said["perplexity"] == pytest.approx(perplexity(model, data.held_out), rel=1e-6)
        assert said["cache_bytes_per_token"] == cache_bytes_per_token(model, torch.arange(3, 13))
        assert said["tokens_per_second"] > 1
    assert report.plan is not None
    assert 0.65 < report.plan.result["params_after"] / report.before["params"] <= 0.7  # biases are added to that
    assert report.choices["data"] == data.said
    assert str(made.parent) not in json.dumps(report.choices, default=str)


def test_the_files_say_the_same(pruned: tuple[Path, fk.Report]) -> None:
    out, report = pruned
    assert fk.Report.load(out / "report.json").after == report.after
    assert report.plan is not None
    assert fk.Plan.load(out / "plan.json").result == report.plan.result
    assert report.plan.request["serve"] == "hf"
    assert report.plan.result["serves"]["hf"] == "yes"
    card = (out / "README.md").read_text()
    for said in ("perplexity, held out", "bytes of cache per token", "keep_params=0.7", "hf: yes", "of text.txt"):
        assert said in card


def test_calibration_and_measurement_are_of_different_documents(made: Path) -> None:
    tokenizer = open_folder(made).tokenizer()
    texts = documents()
    data = batches(read_documents(texts, tokenizer), tokenizer, Layout(9999, 999, 0.1, 4, False, "right"), 320)
    rows = [
        {
            tuple(row[mask.bool()].tolist())
            for b in side
            for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        }
        for side in (data.calibration, data.held_out)
    ]
    assert len(rows[0]) > 5 * len(rows[1]) > 0
    assert not rows[0] & rows[1]


def test_the_same_twice(pruned: tuple[Path, fk.Report], made: Path, text: Path, tmp_path: Path) -> None:
    out, report = pruned
    again = fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.7, **SMALL)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert again.after["perplexity"] == report.after["perplexity"]


def test_a_folder_of_bfloat16_stays_one(text: Path, tmp_path: Path) -> None:
    make_folder("llama", tmp_path / "in", torch.bfloat16)
    report = fk.hf.prune(tmp_path / "in", text, out=tmp_path / "out", keep_params=0.8, **SMALL)
    small = open_again(tmp_path / "out")
    assert small.dtype is torch.bfloat16
    assert report.before["cache_bytes_per_token"] == 384
    fk.hf.prune(tmp_path / "in", text, out=tmp_path / "wide", keep_params=0.8, dtype=torch.float32, **SMALL)
    assert open_again(tmp_path / "wide").dtype is torch.float32


def test_token_ids_need_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ids = torch.randint(3, 300, (20, 40), generator=torch.Generator().manual_seed(0))
    report = fk.hf.prune(folder, list(ids), out=tmp_path / "out", keep_params=0.8, **SMALL)
    assert report.choices["data"]["documents"] == 20
    assert not list((tmp_path / "out").glob("tokenizer*"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_documents(made: Path, tmp_path: Path, side: str) -> None:
    report = fk.hf.prune(
        made, documents()[:60], out=tmp_path / "out", keep_params=0.8, packing=False, padding=side, **SMALL
    )
    assert report.choices["data"]["layout"] == f"padded on the {side}"
    open_again(tmp_path / "out")


def test_weights_without_a_place_are_told(folder: Path, text: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["model.further.weight"] = torch.zeros(3)
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    report = fk.hf.prune(folder, text, out=tmp_path / "out", keep_params=0.8, **SMALL)
    assert report.choices["weights_without_a_place"] == ["model.further.weight"]
    open_again(tmp_path / "out")


def test_what_transformers_cannot_open_leaves_nothing(
    made: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise fk.InputError("the configuration of what is left has no place for it")

    monkeypatch.setattr("fairkern.hf.output.verify", refuses)
    with pytest.raises(fk.InputError, match="the configuration of what is left has no place for it"):
        fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.7, **SMALL)
    assert os.listdir(tmp_path) == []


def test_layers_and_heads_may_differ_for_llama_cpp(made: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = fk.hf.prune(made, text, out=out, keep_params=0.7, serve="deci", **SMALL)
    small = fk.load_pruned(transformers.AutoModelForCausalLM.from_pretrained(made), out)
    assert parameters(small) == report.after["params"]
    assert fk.Report.load(out / "report.json").after == report.after


def test_none_is_for_transformers(made: Path, text: Path, tmp_path: Path) -> None:
    fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.7, serve=None, **SMALL)
    open_again(tmp_path / "out")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sequence": 300}, "sequence=300 is longer than the 256 positions of the model: pass sequence=256"),
    ({"sequence": 1}, "sequence"),
    ({"samples": 0}, "samples"),
    ({"held_out": 0}, "held_out=0.0 is not above 0 and below 1"),
    ({"held_out": 1.0}, "held_out=1.0 is not above 0 and below 1"),
    ({"padding": "middle"}, "padding is 'middle'; expected 'left' or 'right'"),
    ({"batch_size": 2.5}, "batch_size"),
    ({"packing": "yes"}, "packing"),
    ({"dtype": torch.int8}, "dtype is torch.int8; expected a floating dtype"),
    ({"dtype": "float32"}, "dtype is 'float32'; expected a floating dtype"),
    ({"device": "toaster"}, "device is 'toaster'; expected for example 'cpu'"),
    ({"device": "meta"}, "device is 'meta', where nothing has values"),
    ({"device": "xla"}, "device is 'xla', which cannot be used here"),
    ({"trust_remote_code": 1}, "trust_remote_code"),
    ({"out": ""}, "out is empty"),
    ({"keep_params": 1.5}, "keep_params=1.5 is not a share"),
    ({"keep_flops": 0.5}, "give exactly one of .*; got keep_params and keep_flops"),
    ({"serve": "nobody"}, "serve is 'nobody'"),
    ({"max_remove": 3}, "max_remove"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[next(iter(given)) + str(i) for i, (given, _) in enumerate(BAD)])
def test_wrong_options(made: Path, text: Path, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    options = {"out": tmp_path / "out", "keep_params": 0.8, **SMALL, **given}
    with pytest.raises(fk.InputError, match=said):
        fk.hf.prune(made, text, **options)
    assert os.listdir(tmp_path) == []


def test_options_are_looked_at_before_a_folder_is(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"fk.hf.prune\(\) got an unexpected keyword argument 'keep_param'; did you mean"
    ):
        fk.hf.prune(tmp_path / "absent", "absent", out=tmp_path / "out", keep_param=0.8)  # type: ignore[call-arg]
    with pytest.raises(fk.InputError, match="give exactly one of"):
        fk.hf.prune(tmp_path / "absent", "absent", out=tmp_path / "out")


def test_text_for_a_folder_without_a_tokenizer(folder: Path, text: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(fk.InputError, match="has no tokenizer"):
        fk.hf.prune(folder, text, out=tmp_path / "out", keep_params=0.8, **SMALL)


def test_transformers_is_quiet_where_proofs_generate(
    made: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(*_: Any, **__: Any) -> None:
        raise fk.InputError(f"at {transformers.utils.logging.get_verbosity()}")

    monkeypatch.setattr("fairkern.hf.run.prune_model", looks)
    with pytest.raises(fk.InputError, match=f"at {transformers.utils.logging.ERROR}"):
        fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.8, **SMALL)


def test_weights_that_an_equal_folder_lacks_are_to_be_fetched(
    pruned: tuple[Path, fk.Report], text: Path, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = shutil.copytree(pruned[0], tmp_path / "in")
    weights = safetensors.load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(fk.InputError, match=r"lacks lm_head\.weight, .*fetch the whole folder again"):
        fk.hf.prune(folder, text, out=tmp_path / "out", keep_params=0.8, **SMALL)


def test_an_interrupted_run_may_be_started_again(made: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(made / "config.json", tmp_path / ".fairkern-0123456789abcdef.tmp")  # what a killed writer leaves
    fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.8, **SMALL)
    assert os.listdir(tmp_path) == ["out"]
