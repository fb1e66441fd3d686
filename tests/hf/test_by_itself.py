"""A folder that `fk.hf.prune` wrote, loaded by itself: even ones as transformers does, uneven ones by their build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from tests.artefacts.edited import edit_json

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

IDS = torch.arange(3, 40)[None]


def given(text: Path) -> dict[str, Any]:
    return {"data": text, "sequence": 32, "samples": 8, "keep_params": 0.8, "progress": False}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def whole(bare: Any, loaded: Any) -> Any:
    """One without weights, given those of another."""
    assert all(parameter.is_meta for parameter in bare.parameters())
    bare.load_state_dict(loaded.state_dict(), assign=True)
    return bare


def test_an_even_one(made: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fk.hf.prune(made, out=out, **given(text))
    assert not (out / "build.json").exists()
    expected = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    loaded = fk.load_pruned(out)
    assert type(loaded) is type(expected)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in expected.parameters()}
    assert torch.equal(logits(loaded), logits(expected))
    assert torch.equal(logits(whole(fk.load_pruned(out, device="meta"), loaded)), logits(expected))


@pytest.mark.filterwarnings("error:.*shapes agree")
@pytest.mark.parametrize("serve", ["deci", "vllm"])
def test_an_uneven_one(serve: str, made: Path, text: Path, tmp_path: Path) -> None:
    """Also where config.json says what the layers of the cut model hold."""
    out = tmp_path / "out"
    fk.hf.prune(made, out=out, serve=serve, biases=False, **given(text))
    uncut = transformers.AutoModelForCausalLM.from_pretrained(made).eval()
    loaded, expected = fk.load_pruned(out), fk.load_pruned(uncut, out)
    assert len({layer.mlp.down_proj.in_features for layer in loaded.model.layers}) > 1
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in expected.parameters()}
    assert torch.equal(logits(loaded), logits(expected))
    assert torch.equal(logits(whole(fk.load_pruned(out, device="meta"), loaded)), logits(expected))
    if serve == "deci":  # as folders were before: config.json beside the weights is that of the uncut model
        (out / "build.json").unlink()
        assert torch.equal(logits(fk.load_pruned(out)), logits(expected))


@pytest.fixture(scope="module")
def even(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    plan = fk.trace(model, {"input_ids": IDS}).plan(keep_params=0.8, serve="hf")
    out = tmp_path_factory.mktemp("even") / "out"
    fk.hf.save(fk.apply(model, plan), plan, out, like=made)
    return out


DAMAGE: dict[str, tuple[Any, type[Exception], str]] = {
    "sizes": (lambda c: c.update(intermediate_size=64), fk.InputError, "does not load the folder as that"),
    "layers": (lambda c: c.update(num_hidden_layers=9), fk.ArtefactError, "lacks model.layers"),
    "no class": (lambda c: c.pop("architectures"), fk.InputError, "names no class"),
    "code": (lambda c: c.update(architectures=["os.system"]), fk.InputError, "has no model class 'os.system'"),
    "own code": (lambda c: c.update(architectures=["MyOwnLM"]), fk.InputError, "has no model class 'MyOwnLM'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_configuration_that_is_not_that(damage: str, even: Path, tmp_path: Path) -> None:
    edit, kind, what = DAMAGE[damage]
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in even.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(kind, match=what):
        fk.load_pruned(folder)


def test_a_plan_of_another_model_beside(even: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in even.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_json(folder / "plan.json", lambda content: content["axes"].clear())
    with pytest.raises(fk.PlanMismatchError, match=r"which is not what .*plan\.json leaves: .* has shape"):
        fk.load_pruned(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(fk.ArtefactError, match="truncated or not JSON"):
        fk.load_pruned(folder)


def test_no_pickles(even: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in even.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(fk.InputError, match="does not load the folder as that"):
        fk.load_pruned(folder)
