"""A dozen families through the command line and back: some at one budget here, all at five where there is time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fairkern as fk
from bench.shipping.__main__ import BUDGETS, RESULTS
from bench.shipping.asked import answers
from bench.shipping.families import FAMILIES, TWELVE, make_folder
from bench.shipping.remembered import remembered
from bench.shipping.row import LOGITS, failure, row_of, ship

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_a_family_in_this_process(name: str, tmp_path: Path, text: Path) -> None:
    make_folder(name, tmp_path / "folder")
    out = tmp_path / "out-0.7"
    options = ["--hf", tmp_path / "folder", "--data", text, "--sequence", "32", "--samples", "12", "--quiet"]
    assert remembered(str(out), [*map(str, options)])["code"] == 0
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    found, expected = answers(model.eval()), torch.load(f"{out}.pt", weights_only=True)
    assert float((found["logits"] - expected["logits"]).abs().max()) <= LOGITS
    assert torch.equal(found["dynamic"], expected["dynamic"])
    assert torch.equal(found["static"], expected["dynamic"])
    if name == "mixtral":  # experts are one by one in its files, and together in memory
        safetensors = pytest.importorskip("safetensors")
        with safetensors.safe_open(out / "model.safetensors", "pt") as opened:
            names = set(opened.keys())
        assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in names
        assert not any("gate_up_proj" in name for name in names)


def test_what_goes_wrong_is_a_row(tmp_path: Path) -> None:
    said = "fairkern: warning: slow\nfairkern: error: keep_params=0.001 cannot be reached"
    row = row_of(tmp_path / "out-0.1", 0.1, {"code": 2, "said": said, "seconds": 1.0}, {})
    assert row == {"failed": "fairkern: error: keep_params=0.001 cannot be reached", "seconds": 1.0}
    assert "killed" in row_of(tmp_path / "out-0.1", 0.1, {"said": "killed"}, {})["failed"]
    wrong = {"missing": ["a", "b"], "unexpected": [], "mismatched": [], "logits": 1.0, "tokens": 64}
    assert failure({**wrong, "dynamic": 64, "static": 3}, 0.7, 0.7) == {
        "failed": "missing a; logits differ by 1.0e+00; 3 tokens alike, static cache"
    }
    right = {**wrong, "missing": [], "logits": 0.0, "dynamic": 64, "static": 64}
    assert failure(right, 0.7, 0.7) == {}
    assert failure(right, 0.71, 0.7) == {"failed": "0.710 of the parameters are planned"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TWELVE)
def test_a_family(name: str, tmp_path: Path, text: Path) -> None:
    make_folder(name, tmp_path / "folder")
    rows = ship(tmp_path / "folder", text, tmp_path, BUDGETS)
    assert [row.get("failed") for row in rows] == [None] * len(BUDGETS)
    assert all(row["different_tokens"] >= 8 for row in rows)  # else equal tokens would say little


def test_the_committed_rows() -> None:
    """Every family at every budget, and all of them ship."""
    rows = json.loads(RESULTS.read_text())["rows"]
    found = {(row["family"], row["keep_params"]) for row in rows}
    assert {(name, keep) for name in TWELVE for keep in BUDGETS} <= found
    assert {family for family, _ in found} <= set(FAMILIES)
    assert [row for row in rows if row["family"] in TWELVE and "failed" in row] == []


def test_lm_eval_reads_it(tmp_path: Path, made: Path, text: Path) -> None:
    """The harness's adapter for such folders gives the odds that the model gives."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    fk.hf.prune(made, text, out=tmp_path / "out", keep_params=0.7, sequence=32, samples=8, progress=False)
    adapter = huggingface.HFLM(pretrained=str(tmp_path / "out"), device="cpu", batch_size=1, dtype="float32")
    asked = ("Return the", " value of it")
    ((said, _),) = adapter.loglikelihood([instance.Instance("loglikelihood", {}, asked, 0)], disable_tqdm=True)
    context, end = (adapter.tokenizer(part, add_special_tokens=False)["input_ids"] for part in asked)
    with torch.no_grad():
        logits = adapter.model(input_ids=torch.tensor([[*context, *end]])).logits[0].double().log_softmax(-1)
    expected = sum(float(logits[len(context) + i - 1, token]) for i, token in enumerate(end))
    assert said == pytest.approx(expected, abs=1e-3)


def test_a_width_by_another_name(tmp_path: Path) -> None:
    """Falcon counts neurons in a field of its own, and heads in one whose size it derives."""
    model = make_folder("falcon", tmp_path / "folder")
    units = fk.trace(model, {"input_ids": torch.randint(3, 300, (2, 8), generator=torch.Generator().manual_seed(0))})
    assert [(found.name, found.before) for found in units.config] == [("ffn_hidden_size", 256)]
    assert units.plan(keep_params=0.7, serve="hf").result["serves"]["hf"] == "yes"
