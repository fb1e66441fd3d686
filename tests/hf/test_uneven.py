"""A folder in, one out whose layers differ, for servers that take such: and on to a file for llama.cpp."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import fairkern as fk
from fairkern.cli import main
from tests.hf.decoders import SIZES, built

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def given(text: Path) -> dict[str, Any]:
    return {"data": text, "sequence": 32, "samples": 8, "keep_params": 0.8, "progress": False}


def test_a_plan_for_llama_cpp_becomes_a_file(made: Path, text: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    done = fk.hf.prune(made, out=tmp_path / "out", serve="gguf", **given(text))
    assert done.plan is not None
    assert done.plan.result["serves"]["hf"] != "yes"
    names = set(os.listdir(tmp_path / "out"))
    assert names >= {"config.json", "plan.json", "report.json", "README.md", "model.safetensors", "tokenizer.json"}
    assert "fairkern.load_pruned" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(tmp_path / "out"), "--gguf", str(tmp_path / "m.gguf"), "--no-vocab", "--quiet"]) == 0
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.architecture"].contents() == "deci"


def test_a_plan_for_vllm_says_its_layers(made: Path, text: Path, tmp_path: Path) -> None:
    done = fk.hf.prune(made, out=tmp_path / "out", serve="vllm", biases=False, **given(text))
    assert done.plan is not None
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    widths = [entry["ffn"]["intermediate_size"] for entry in written["block_configs"]]
    assert len(set(widths)) > 1
    assert written["intermediate_size"] == max(widths)
    assert {entry["attention"]["num_key_value_heads"] for entry in written["block_configs"]} == {
        written["num_key_value_heads"]
    }


def test_what_from_pretrained_does_not_load_is_said(
    made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--keep-params", "0.8", "--sequence", "32", "--samples", "8", "--serve", "deci"]
    assert main(["prune", "--hf", str(made), "--data", str(text), "-o", str(out), *options]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "`from_pretrained` does not load it: config.json is that of the uncut model" in last
    assert "`fairkern.load_pruned` loads it into tiny-llama" in last
    assert json.loads((out / "config.json").read_text()) == json.loads((made / "config.json").read_text())
    with pytest.raises(fk.InputError, match="is pruned already, and its layers differ"):
        fk.hf.prune(out, out=tmp_path / "again", **given(text))


@pytest.mark.parametrize(
    ("kind", "given_", "what"),
    [
        ("GemmaConfig", {"head_dim": 16}, 'what the gemma family does: plan with serve="hf"'),
        ("GraniteConfig", {"logits_scaling": 2.0}, "computes something else with them"),
        ("MixtralConfig", {"sliding_window": None}, "experts have no place"),
        ("MistralConfig", {"sliding_window": 16}, "sliding_window is 16"),
    ],
)
def test_a_model_that_llama_cpp_cannot_be_told_of(kind: str, given_: dict[str, Any], what: str, tmp_path: Path) -> None:
    built(getattr(transformers, kind)(**SIZES, **given_)).save_pretrained(tmp_path / "in")
    for serve in ("gguf", "gguf:q8_0", "deci"):
        with pytest.raises(fk.InputError, match=f"serve='{serve}': .*{what}") as raised:
            fk.hf.prune(tmp_path / "in", [[1, 2, 3] * 20] * 20, out=tmp_path / "out", serve=serve, keep_params=0.8)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
