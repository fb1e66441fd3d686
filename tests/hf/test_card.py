"""The card: that what it says is so, of a cut model as of one that was trained since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from fairkern.hf.card import card
from fairkern.hf.folder import open_folder
from tests.hf.cut import equal_plan
from tests.hf.decoders import SIZES, built

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def cut(made: Path) -> tuple[Any, fk.Plan]:
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    plan = equal_plan(model)
    return fk.apply(model, plan), plan


def test_a_report_comes_along_with_what_was_healed(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    small, plan = cut
    report = fk.summarise(
        plan, before={"perplexity": 10.0}, after={"perplexity": 20.0}, healed={"perplexity": 12.0, "accuracy": 0.5}
    )
    fk.hf.save(small, plan, tmp_path / "out", like=made, report=report)
    written = (tmp_path / "out" / "README.md").read_text()
    assert "| | before | one shot | healed |\n|---|---|---|---|\n" in written
    assert "| parameters | 150,960 | 127,920 | 127,920 |" in written
    assert "| perplexity, held out | 10 | 20 | 12 |" in written
    assert "not trained" not in written
    assert fk.Report.load(tmp_path / "out" / "report.json").healed == report.healed


def test_parameters_are_those_that_are_written(cut: tuple[Any, fk.Plan], made: Path) -> None:
    small, plan = cut
    small.more = torch.nn.Parameter(torch.zeros(80))
    try:
        assert "| parameters | 150,960 | 128,000 |" in card(small, plan, open_folder(made), None)
    finally:
        del small.more


def test_only_prune_says_that_nothing_was_trained(cut: tuple[Any, fk.Plan], made: Path) -> None:
    folder = open_folder(made)
    assert "Removed by fairkern from the model named above: neurons. It loads" in card(*cut, folder, None)
    assert "neurons; it was not trained afterwards. It loads" in card(*cut, folder, None, untrained=True)


def test_reports_of_others_are_refused(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    small, plan = cut
    other = fk.summarise(equal_plan(open_folder(made).load(None, torch.device("cpu"))[0], 0.5))
    for given, said in ((other, "report is of another plan"), ({"perplexity": 1}, "report")):
        for save in (fk.hf.save, fk.hf.save_uneven):
            with pytest.raises(fk.InputError, match=said):
                save(small, plan, tmp_path / "out", like=made, report=given)  # type: ignore[arg-type,operator]
    assert not (tmp_path / "out").exists()


def test_layers_drop_and_depth_are_said(made: Path, text: Path, tmp_path: Path) -> None:
    report = fk.hf.prune(
        made, text, out=tmp_path / "out", keep_params=0.6, depth=True, sequence=32, samples=8, progress=False
    )
    written = (tmp_path / "out" / "README.md").read_text()
    assert report.choices["request"]["depth"] is True
    layers = transformers.AutoConfig.from_pretrained(tmp_path / "out").num_hidden_layers
    assert layers < 4
    assert f"- {4 - layers} of 4 layers of model.layers\n" in written
    assert f"num_hidden_layers 4 → {layers}" in written
    assert "branches of layers" in written
    assert "depth=True" in written
    assert report.plan is not None
    dropped = replace(report, choices={**report.choices, "request": {"drop": {"expert": 2, "head": 1}}})
    small = open_folder(tmp_path / "out").load(None, torch.device("cpu"))[0]
    assert "- asked for: drop expert=2, head=1\n" in card(small, report.plan, open_folder(made), dropped)


def test_experts_are_for_the_converter_of_llama_cpp(tmp_path: Path) -> None:
    model = built(transformers.MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None))
    model.save_pretrained(tmp_path / "in")
    plan = equal_plan(model, 0.5, ("expert",))
    written = card(fk.apply(model, plan), plan, open_folder(tmp_path / "in"), None)
    assert "named above: experts. It loads" in written
    assert "Who loads it:\n\n- hf: yes\n" in written
    assert "- gguf: by llama.cpp's own converter (`fairkern export` does not write it: experts have no place" in written
    assert str(tmp_path) not in written


def test_like_is_the_folder_of_the_model(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    small, plan = cut
    built(transformers.Qwen2Config(**SIZES)).save_pretrained(tmp_path / "qwen")
    built(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path / "llama")
    for like, said in (
        ("qwen", "of the model type qwen2, and small is of the type llama"),
        ("llama", "is 96, and the"),
    ):
        for save in (fk.hf.save, fk.hf.save_uneven):
            with pytest.raises(fk.InputError, match=said):
                save(small, plan, tmp_path / "out", like=tmp_path / like)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_another_class_is_no_causal_language_model(made: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(made)
    model = transformers.LlamaForSequenceClassification(config).eval()
    plan = equal_plan(model)
    with pytest.raises(fk.InputError, match=r"the weights lack, lm_head\.weight"):
        fk.hf.save(fk.apply(model, plan), plan, tmp_path / "out", like=made)
    assert not (tmp_path / "out").exists()


def test_only_what_export_writes_is_said_to_be_for_it(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    model = built(transformers.GemmaConfig(**SIZES, head_dim=16))
    model.save_pretrained(tmp_path / "gemma")
    plan = equal_plan(model)
    for small, by, like in ((cut[0], cut[1], made), (fk.apply(model, plan), plan, tmp_path / "gemma")):
        out = tmp_path / f"out-{like.name}"
        fk.hf.save_uneven(small, by, out, like=like, report=fk.summarise(by))
        assert ("`fairkern export --gguf` writes it" in (out / "README.md").read_text()) == (like is made)


def test_an_unsteady_clock_is_said(cut: tuple[Any, fk.Plan], made: Path) -> None:
    small, plan = cut
    said = "measured while the clock was unsteady"
    done = fk.summarise(plan)
    assert said in card(small, plan, open_folder(made), replace(done, timing={"steady": False}))
    assert said not in card(small, plan, open_folder(made), done)
