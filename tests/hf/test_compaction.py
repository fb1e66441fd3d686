"""Folders of transformers cut file by file, against the model cut and saved by transformers itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fairkern as fk
from fairkern.artefacts.shards import open_shards
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.hf.cut import equal_plan

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from bench.shipping.families import FAMILIES as FAMILIES_OF  # noqa: E402
from bench.shipping.families import make_folder  # noqa: E402
from fairkern.hf.file_names import files_of  # noqa: E402

FAMILIES = ("mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss", "phi3", "gpt2", "gemma2")
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def read(folder: Path) -> dict[str, Tensor]:
    with open_shards(folder) as shards:
        return {name: shards.read(name) for name in shards.shapes}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def opened(family: str, place: Path) -> Any:
    """A tiny model, and its folder in shards, as transformers writes it."""
    make_folder(family, place / "made")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "made")
    model.save_pretrained(place / "in", max_shard_size="60KB")
    assert len(list((place / "in").glob("*.safetensors"))) > 3
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_those_that_the_cut_model_saves(family, tmp_path):
    model = opened(family, tmp_path)
    units = fk.trace(model, {"input_ids": IDS}, verify=False)
    plan = fk.hf.name_files(build(units, random_removal(units, 0.4, 1)), tmp_path / "in")
    plan.save(tmp_path / "plan.json")
    plan = fk.Plan.load(tmp_path / "plan.json")
    done = fk.compact_checkpoint(tmp_path / "in", plan, tmp_path / "out", largest=50_000)
    assert done.ignored == ()
    fk.apply(model, plan).save_pretrained(tmp_path / "expected")
    same(read(tmp_path / "out"), read(tmp_path / "expected"))


def test_whole_layers_go_and_the_configuration_follows(tmp_path):
    model = opened("mixtral", tmp_path)
    units = fk.trace(model, {"input_ids": IDS}, depth=True, verify=False)
    gone = [np.array([1]) if g.kind == "branch" else np.zeros(0, dtype=np.int64) for g in units.groups]
    plan = build(units, gone)
    assert plan.lists
    plan = fk.hf.name_files(plan, tmp_path / "in")
    fk.compact_checkpoint(tmp_path / "in", plan, tmp_path / "out")
    fk.hf.save(fk.apply(model, plan), plan, tmp_path / "expected", like=tmp_path / "in")
    same(read(tmp_path / "out"), read(tmp_path / "expected"))
    same_config(tmp_path)
    opened_again(tmp_path / "out", fk.apply(model, plan))


def same_config(place: Path) -> None:
    found, expected = (json.loads((place / name / "config.json").read_text()) for name in ("out", "expected"))
    assert found == expected


def opened_again(folder: Path, small: Any) -> None:
    again, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS).logits, small.eval()(IDS).logits)


@pytest.mark.parametrize(("family", "kinds"), [("deepseek-v3", ("expert",)), ("gpt-oss", ("expert",))])
def test_what_is_left_is_the_folder_that_hf_save_writes(family, kinds, tmp_path):
    model = opened(family, tmp_path)
    plan = fk.hf.name_files(equal_plan(model, 0.5, kinds), tmp_path / "in")
    assert plan.config
    small = fk.apply(model, plan)
    fk.compact_checkpoint(tmp_path / "in", plan, tmp_path / "out")
    fk.hf.save(small, plan, tmp_path / "expected", like=tmp_path / "in")
    same(read(tmp_path / "out"), read(tmp_path / "expected"))
    same_config(tmp_path)
    opened_again(tmp_path / "out", small)


def test_a_plan_of_prune_names_the_files_and_says_what_was_compensated(folder, text, tmp_path, capsys):
    from fairkern.cli import main

    report = fk.hf.prune(folder, text, out=tmp_path / "pruned", keep_params=0.8, samples=8, sequence=32)
    assert report.plan is not None
    assert report.plan.files is not None
    plan = tmp_path / "pruned" / "plan.json"
    assert main(["compact", str(folder), "--plan", str(plan), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "nothing was folded in" in said
    assert "sequential" in said
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    small = fk.apply(model, report.plan)
    opened_again(tmp_path / "out", small)
    for name in ("tokenizer.json", "manifest.json", "plan.json"):
        assert (tmp_path / "out" / name).is_file()
    assert fk.Plan.load(tmp_path / "out" / "plan.json").files == report.plan.files


def test_a_model_whose_files_cannot_be_named_is_pruned_and_the_plan_says_why(folder, text, tmp_path, monkeypatch):
    def fails(*_: Any) -> None:
        raise ValueError("not these")

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", fails)
    report = fk.hf.prune(folder, text, out=tmp_path / "out", keep_params=0.9, samples=8, sequence=32, compensate="none")
    plan = fk.Plan.load(tmp_path / "out" / "plan.json")
    assert report.plan is not None
    assert plan.files is report.plan.files is None
    assert "ValueError: not these" in plan.result["files_unnamed"]
    with pytest.raises(fk.InputError, match="not these"):
        fk.hf.name_files(plan, folder)
    model = opened("mixtral", tmp_path / "other")
    other = equal_plan(model, 0.5, ("expert",))
    with pytest.raises(fk.PlanMismatchError, match="which names files have: because"):
        fk.compact_checkpoint(
            tmp_path / "other" / "in", replace(other, result={"files_unnamed": "because"}), tmp_path / "cut"
        )


def test_it_takes_no_transformers(tmp_path):
    model = opened("qwen3-moe", tmp_path)
    units = fk.trace(model, {"input_ids": IDS}, verify=False)
    fk.hf.name_files(build(units, random_removal(units, 0.4, 1)), tmp_path / "in").save(tmp_path / "plan.json")
    program = (
        "import sys; sys.modules['transformers'] = sys.modules['safetensors'] = None\n"
        "from fairkern.cli import main\n"
        f"sys.exit(main(['compact', {str(tmp_path / 'in')!r}, '--plan', {str(tmp_path / 'plan.json')!r},"
        f" '-o', {str(tmp_path / 'out')!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])
    fk.apply(model, fk.Plan.load(tmp_path / "plan.json")).save_pretrained(tmp_path / "expected")
    same(read(tmp_path / "out"), read(tmp_path / "expected"))


def test_what_a_folder_holds_beside_the_model_is_named_and_left_out(tmp_path):
    model = opened("llama", tmp_path)
    from safetensors.torch import load_file, save_file

    first = sorted((tmp_path / "in").glob("*.safetensors"))[0]
    save_file({**load_file(first), "model.layers.9.extra": torch.zeros(3)}, first, metadata={"format": "pt"})
    units = fk.trace(model, {"input_ids": IDS}, verify=False)
    plan = fk.hf.name_files(build(units, random_removal(units, 0.4, 1)), tmp_path / "in")
    assert plan.files.ignored == ("model.layers.9.extra",)
    done = fk.compact_checkpoint(tmp_path / "in", plan, tmp_path / "out")
    assert done.ignored == ("model.layers.9.extra",)
    fk.apply(model, plan).save_pretrained(tmp_path / "expected")
    same(read(tmp_path / "out"), read(tmp_path / "expected"))


def quantised(folder: Path, pack: dict[str, Any], weights: tuple[str, ...]) -> None:
    """Weights whose names end so as codes and scales in a folder of one file."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(weights):
            tensors[name] = tensor
        elif pack["quant_method"] == "fp8":
            rows, columns = (-(-size // block) for size, block in zip(tensor.shape, (16, 16), strict=True))
            tensors[name] = tensor.to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.rand(rows, columns, generator=generator)
        else:
            experts, inside, outside = tensor.shape
            shape = (experts, outside, inside // 32, 16)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(0, 256, shape[:-1], generator=generator, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": pack}))


def expert_plan(model: Any, folder: Path) -> fk.Plan:
    """The first of the experts of every layer goes, of each group where they are chosen by groups."""
    units = fk.trace(model, {"input_ids": IDS}, verify=False)
    gone = [
        np.zeros((g.sets, 1) if g.sets > 1 else 1, dtype=np.int64)
        if g.kind == "expert"
        else np.zeros(0, dtype=np.int64)
        for g in units.groups
    ]
    assert any(removed.size for removed in gone)
    return fk.hf.name_files(build(units, gone), folder)


def test_experts_of_fp8_and_mxfp4_go_whole(tmp_path):
    for name, pack, ends in (
        ("deepseek-v3", {"quant_method": "fp8", "weight_block_size": [16, 16]}, ("_proj.weight",)),
        ("gpt-oss", {"quant_method": "mxfp4"}, ("experts.gate_up_proj", "experts.down_proj")),
    ):
        place = tmp_path / name
        config, kind, sizes = FAMILIES_OF[name]
        model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, "hidden_size": 64})).eval()
        model.save_pretrained(place / "in")
        quantised(place / "in", pack, ends)
        plan = expert_plan(model, place / "in")
        done = fk.compact_checkpoint(place / "in", plan, place / "out")
        assert done.ignored == ()
        before, after = read(place / "in"), read(place / "out")
        fk.apply(model, plan).save_pretrained(place / "expected")
        expected = read(place / "expected")
        beside = ("", "_scale_inv", "_blocks", "_scales")
        assert after.keys() == {f"{n}{end}" for n in expected for end in beside} & before.keys()
        for tensor in after:
            if tensor in expected:
                assert after[tensor].shape == expected[tensor].shape
        codes = [n for n in after if n.endswith(("_blocks", "_scales"))]
        for code in codes:
            assert torch.equal(after[code], before[code][1:])


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    model = opened("llama", tmp_path)
    units = fk.trace(model, {"input_ids": IDS}, verify=False)
    plan = fk.hf.name_files(build(units, random_removal(units, 0.4, 1)), tmp_path / "in")
    model.save_pretrained(
        tmp_path / "less", state_dict={name: t for name, t in model.state_dict().items() if name != "model.norm.weight"}
    )
    with pytest.raises(fk.PlanMismatchError, match=r"holds nothing of model\.norm\.weight"):
        fk.compact_checkpoint(tmp_path / "less", plan, tmp_path / "out")


def test_values_and_memory_of_a_model_are_not_needed_to_name_its_files(tmp_path):
    """A mixture of 47 billion parameters, on the meta device."""
    config = transformers.MixtralConfig(num_hidden_layers=32)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    files = files_of(model, None)
    assert len(files.tensors) == 32 * (8 * 3 + 1)
    up = next(t for t in files.tensors if t.name == "model.layers.3.block_sparse_moe.experts.5.w3.weight")
    assert up.shape == (14336, 4096)
    assert up.parts[0].index == (5, (0, 14336, 1), (1, 0, 1))
