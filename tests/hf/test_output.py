"""The folder that is written: what is in it, that it is whole or not there, and that it opens."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from fairkern.hf.folder import open_folder
from fairkern.hf.verify import verify
from tests.hf.cut import equal_plan

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cut(made: Path) -> tuple[Any, fk.Plan]:
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    plan = equal_plan(model)
    return fk.apply(model, plan), plan


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_written_opens_without_fairkern(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    small, plan = cut
    fk.hf.save(small, plan, tmp_path / "out", like=made)
    assert names(tmp_path) == ["out"]
    ours = {"config.json", "generation_config.json", "model.safetensors", "plan.json", "README.md"}
    assert set(names(tmp_path / "out")) == ours | {path.name for path in made.glob("tokenizer*")}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert model.config.intermediate_size == 120
    assert torch.equal(logits(model.eval()), logits(small))
    assert fk.Plan.load(tmp_path / "out" / "plan.json").result == plan.result
    for path in made.glob("tokenizer*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_the_card(cut: tuple[Any, fk.Plan], folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    fk.hf.save(*cut, tmp_path / "out", like=folder)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: tiny-llama\nlicense: apache-2.0\ntags:")
    assert "| parameters | 150,960 | 127,920 |" in card
    assert "160 of 640 units of the kind neuron" in card
    assert "intermediate_size 160 → 120" in card
    assert str(tmp_path) not in card


def test_what_belongs_to_the_tokenizer_comes_along(cut: tuple[Any, fk.Plan], folder: Path, tmp_path: Path) -> None:
    brought = ["chat_template.jinja", "special_tokens_map.json", "merges.txt", "tokenizer.model", "LICENSE"]
    left = ["notes.txt", "modeling.py", "consolidated.pth", "optimizer.bin", ".gitattributes"]
    for name in (*brought, *left):
        (folder / name).write_text(name)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("tool")
    fk.hf.save(*cut, tmp_path / "out", like=folder)
    assert set(brought) <= set(names(tmp_path / "out"))
    assert not set(left) & set(names(tmp_path / "out"))
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "tool"


def test_code_that_was_not_used_is_not_named(cut: tuple[Any, fk.Plan], folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    model, _ = open_folder(folder).load(None, torch.device("cpu"))
    plan = equal_plan(model)
    fk.hf.save(fk.apply(model, plan), plan, tmp_path / "out", like=folder)
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_shards(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairkern.hf.output._SHARD", "200KB")
    fk.hf.save(*cut, tmp_path / "out", like=made)
    found = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(found) > 2
    assert all(path.stat().st_size < 210_000 for path in found)
    assert open_folder(tmp_path / "out").shards == tuple(path.name for path in found)


def test_an_empty_folder_is_taken(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    fk.hf.save(*cut, out, like=made)
    assert (out / "config.json").is_file()
    assert out.stat().st_mode & 0o777 == 0o750


def test_places_that_cannot_be_written(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, said in (
        ("full", "full: it is not empty; name a new folder"),
        ("file", "file: it is a file, and a folder"),
        ("file/out", "Not a directory|File exists"),
    ):
        with pytest.raises(fk.InputError, match=said):
            fk.hf.save(*cut, tmp_path / name, like=made)
    assert names(tmp_path) == ["file", "full"]
    assert names(tmp_path / "full") == ["notes"]


def test_a_place_where_no_folder_can_be_made(
    cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fairkern.hf.output.write", lambda *_, **__: pytest.fail("too late"))
    if Path("/proc/self").exists():
        with pytest.raises(fk.InputError, match=r"cannot write /proc/out: no folder can be made in /proc \("):
            fk.hf.save(*cut, "/proc/out", like=made)
    monkeypatch.setattr("fairkern.artefacts.folders.tempfile.TemporaryDirectory", refuses)
    with pytest.raises(fk.InputError, match=r"no folder can be made in .* \(Read-only file system\)"):
        fk.hf.save(*cut, tmp_path / "out", like=made)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_new_ones(
    cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        fk.hf.save(*cut, tmp_path / "even", like=made)
        fk.hf.save_uneven(*cut, tmp_path / "uneven", like=made)
    finally:
        os.umask(before)
    for path in (*(tmp_path / "even").iterdir(), *(tmp_path / "uneven").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(fk.InputError, match="no permission in"):
        fk.hf.save(*cut, tmp_path / "closed" / "out", like=made)


def test_layers_of_different_widths_are_refused_and_leave_nothing(made: Path, tmp_path: Path) -> None:
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    units = fk.trace(model, {"input_ids": torch.arange(3, 15)[None]})
    drawn = units.plan(keep_params=0.8, ignore=["*layers.0.mlp*", "*attn*"])
    small = fk.apply(model, drawn)
    with pytest.raises(
        fk.InputError,
        match=r"expects another shape for model\.layers\.1\.mlp\.down_proj\.weight \(.* in the model\) and \d more$",
    ):
        fk.hf.save(small, drawn, tmp_path / "out", like=made)
    assert names(tmp_path) == []


def test_what_a_configuration_has_no_place_for_is_refused(made: Path, tmp_path: Path) -> None:
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    plan = equal_plan(model)
    small = fk.apply(model, plan)
    down = small.model.layers[1].mlp.down_proj
    down.bias = torch.nn.Parameter(torch.ones(down.out_features))
    with pytest.raises(fk.InputError, match=r"has no place for model\.layers\.1\.mlp\.down_proj\.bias$"):
        fk.hf.save(small, plan, tmp_path / "out", like=made)
    assert names(tmp_path) == []


def test_a_configuration_that_its_own_checks_refuse(made: Path, tmp_path: Path) -> None:
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    plan = equal_plan(model)
    small = fk.apply(model, plan)
    small.config.__dict__["num_attention_heads"] = 7
    with pytest.raises(fk.InputError, match="transformers does not save what is left: "):
        fk.hf.save(small, plan, tmp_path / "out", like=made)
    assert names(tmp_path) == []


def test_other_models_and_plans(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    small, plan = cut
    with pytest.raises(fk.InputError, match="expected a model of transformers"):
        fk.hf.save(torch.nn.Linear(2, 2), plan, tmp_path / "out", like=made)
    with pytest.raises(fk.PlanMismatchError):
        fk.hf.save(open_folder(made).load(None, torch.device("cpu"))[0], plan, tmp_path / "out", like=made)
    with pytest.raises(fk.InputError, match="is not there"):
        fk.hf.save(small, plan, tmp_path / "out", like=tmp_path / "absent")
    assert names(tmp_path) == []


def test_a_missing_key_is_found(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    fk.hf.save(*cut, tmp_path / "out", like=made)
    path = tmp_path / "out" / "model.safetensors"
    weights = safetensors.load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.save_file(weights, path, {"format": "pt"})
    with pytest.raises(fk.InputError, match=r"expects, and the weights lack, model\.layers\.1\.mlp\.up_proj\.weight$"):
        verify(tmp_path / "out")


SAVES = """
import os, sys, torch
sys.path.insert(0, {root!r})
import fairkern as fk
from fairkern.hf.folder import open_folder
from tests.hf.cut import equal_plan
made, out, how = sys.argv[1:4]
model, _ = open_folder(made).load(None, torch.device("cpu"))
plan = equal_plan(model)
small = fk.apply(model, plan)
if how == "kill":
    import fairkern.hf.output, safetensors.torch, transformers.modeling_utils
    fairkern.hf.output._SHARD = "200KB"
    save, calls = transformers.modeling_utils.safe_save_file, []
    def dies(*given, **more):
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), 9)
        return save(*given, **more)
    transformers.modeling_utils.safe_save_file = dies
else:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(how), int(how)))
try:
    fk.hf.save(small, plan, out, like=made)
except fk.FairkernError as error:
    print(error)
    sys.exit(2)
"""


def run(made: Path, out: Path, how: str) -> subprocess.CompletedProcess[str]:
    code = SAVES.replace("{root!r}", repr(str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code, str(made), str(out), how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_between_shards(cut: tuple[Any, fk.Plan], made: Path, tmp_path: Path) -> None:
    done = run(made, tmp_path / "out", "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = names(tmp_path)
    assert left.endswith(".tmp")  # beside it: `out` is not there
    assert list((tmp_path / left).glob("model-*"))
    fk.hf.save(*cut, tmp_path / "out", like=made)  # it goes on, and clears up
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit here")
@pytest.mark.parametrize("most", [100_000, 2_000])
def test_a_full_disk(made: Path, tmp_path: Path, most: int) -> None:
    done = run(made, tmp_path / "out", str(most))
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path / 'out'}: ")
    assert "; nothing was left there\n" in done.stdout
    assert names(tmp_path) == []
