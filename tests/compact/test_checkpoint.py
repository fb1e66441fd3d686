from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fairkern.compact.checkpoint as checkpoint
import fairkern.compact.weights_file as weights_file
from fairkern.axes import solutions
from fairkern.compact import apply, load_pruned, save_pruned
from fairkern.errors import ArtefactError, InputError, PlanMismatchError
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.artefacts.edited import edit_tensors
from tests.compact import handmade
from tests.compact.untouched import assert_untouched, snapshot


@pytest.fixture
def saved(plain_case, tmp_path):
    plan = plain_case.plan()
    small = apply(plain_case.model, plan)
    save_pruned(small, plan, tmp_path / "small")
    return plain_case, plan, small, tmp_path / "small"


def fresh_like(model: nn.Module) -> nn.Module:
    """The same class with other weights; non-persistent buffers as they are."""
    fresh = copy.deepcopy(model)
    kept = fresh.state_dict().keys()
    with torch.no_grad():
        for name, tensor in (*fresh.named_parameters(), *fresh.named_buffers()):
            if name in kept and tensor.is_floating_point():
                tensor.normal_()
    return fresh


def test_round_trip(case, tmp_path):
    plan = case.plan(0.6)
    small = apply(case.model, plan)
    save_pruned(small, plan, tmp_path / "small")
    assert sorted(os.listdir(tmp_path / "small")) == ["model.safetensors", "plan.json"]
    fresh = fresh_like(case.model)
    before = snapshot(fresh)
    loaded = load_pruned(fresh, tmp_path / "small")
    assert_untouched(fresh, before)
    assert torch.equal(loaded(case.inputs), small(case.inputs))
    for (name, found), expected in zip(loaded.named_parameters(), small.parameters(), strict=True):
        assert torch.equal(found, expected), name
        assert found.stride() == expected.stride(), name
        assert found.requires_grad == expected.requires_grad, name
    assert type(loaded) is type(small)
    assert repr(loaded) == repr(small)


def test_meta_costs_nothing_and_gives_a_real_model(saved):
    case, _, small, folder = saved
    with torch.device("meta"):
        fresh = type(case.model)().double().eval()
    loaded = load_pruned(fresh, folder)
    assert torch.equal(loaded(case.inputs), small(case.inputs))
    assert fresh.conv1.weight.is_meta


def test_meta_needs_what_is_not_saved(buffers_case, tmp_path):
    plan = buffers_case.plan()
    save_pruned(apply(buffers_case.model, plan), plan, tmp_path / "small")
    with pytest.raises(InputError, match="shift"):
        load_pruned(buffers_case.model.to("meta"), tmp_path / "small")


def test_tied_tensors_are_stored_once(tied_case, tmp_path):
    plan = tied_case.plan()
    small = apply(tied_case.model, plan)
    save_pruned(small, plan, tmp_path / "small")
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == {"embedding.weight", "head.bias"}
    loaded = load_pruned(tied_case.model, tmp_path / "small")
    assert loaded.head.weight is loaded.embedding.weight


def test_views_of_one_storage_are_stored_apart(tmp_path):
    case = handmade.make(handmade.buffers)
    both = torch.randn(16, dtype=torch.float64)
    plan = case.plan()
    small = apply(case.model, plan)
    small.scale, small.b.bias.data = both[:4], both[2:5]
    save_pruned(small, plan, tmp_path / "small")
    loaded = load_pruned(case.model, tmp_path / "small")
    assert torch.equal(loaded.scale, both[:4])
    assert torch.equal(loaded.b.bias, both[2:5])


def test_new_process(saved, tmp_path):
    case, _, small, folder = saved
    torch.save({"x": case.inputs, "y": small(case.inputs).detach()}, tmp_path / "io.pt")
    code = f"""
import torch
from fairkern.compact import load_pruned
from tests.compact.handmade import Plain
io = torch.load({str(tmp_path / "io.pt")!r}, weights_only=True)
model = load_pruned(Plain().double().eval(), {str(folder)!r})
assert torch.equal(model(io["x"]), io["y"])
model(io["x"]).sum().backward()
assert model.conv1.weight.grad.shape == (4, 3, 3, 3)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_dtype_follows_the_fresh_model(saved):
    case, _, small, folder = saved
    loaded = load_pruned(fresh_like(case.model).float(), folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.allclose(loaded(case.inputs.float()).double(), small(case.inputs), atol=1e-5)


@pytest.mark.parametrize("existing", [(), ("other.txt",), ("model.safetensors", "plan.json")])
def test_folders_that_exist(plain_case, tmp_path, existing):
    folder = tmp_path / "small"
    folder.mkdir()
    for name in existing:
        (folder / name).write_text("old")
    plan = plain_case.plan()
    small = apply(plain_case.model, plan)
    save_pruned(small, plan, folder)
    assert torch.equal(load_pruned(plain_case.model, folder)(plain_case.inputs), small(plain_case.inputs))
    assert sorted(os.listdir(folder)) == sorted({*existing, "model.safetensors", "plan.json"})
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize("failing", ["write_tensors", "replacing_all", "json_file"])
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_save_leaves_nothing_half_written(plain_case, tmp_path, monkeypatch, failing, existing):
    plan, folder = plain_case.plan(), tmp_path / "small"
    small = apply(plain_case.model, plan)
    if existing:
        save_pruned(small, plan, folder)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, failing, fail)
    other = plain_case.plan(seed=1)
    with pytest.raises(KeyboardInterrupt):
        save_pruned(apply(plain_case.model, other), other, folder)
    if existing:
        assert sorted(os.listdir(folder)) == ["model.safetensors", "plan.json"]
        assert torch.equal(load_pruned(plain_case.model, folder)(plain_case.inputs), small(plain_case.inputs))
    else:
        assert os.listdir(tmp_path) == []


def test_what_cannot_be_saved(plain_case, tmp_path, monkeypatch):
    plan = plain_case.plan()
    small = apply(plain_case.model, plan)
    with pytest.raises(PlanMismatchError, match=r"conv1\.weight has shape .* the plan leaves"):
        save_pruned(plain_case.model, plan, tmp_path / "small")
    with pytest.raises(PlanMismatchError):
        save_pruned(nn.Linear(2, 2), plan, tmp_path / "small")
    with pytest.raises(InputError, match="meta"):
        save_pruned(apply(plain_case.model.to("meta"), plan), plan, tmp_path / "small")
    save_pruned(small, plan, tmp_path / "new" / "small")
    assert (tmp_path / "new" / "small" / "model.safetensors").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save_pruned(small, plan, tmp_path / "file")
    monkeypatch.setattr(type(small), "get_extra_state", lambda self: {"more": 1})
    with pytest.raises(InputError, match="_extra_state"):
        save_pruned(small, plan, tmp_path / "small")
    assert sorted(os.listdir(tmp_path)) == ["file", "new"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _edit_metadata(path: Path, change) -> None:
    def edit(metadata):
        content = json.loads(metadata["fairkern"])
        change(content)
        metadata["fairkern"] = json.dumps(content)

    edit_tensors(path, metadata=edit)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "plan.json").unlink(), "no file plan.json"),
        (lambda d: (d / "model.safetensors").unlink(), "no file model.safetensors"),
        (lambda d: _truncate(d / "model.safetensors"), "truncated"),
        (lambda d: _truncate(d / "plan.json"), "truncated"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "truncated"),
        (lambda d: (d / "model.safetensors").write_bytes(b"junk" * 100), "truncated or not"),
        (lambda d: save_file({"a": torch.ones(1)}, d / "model.safetensors"), "not written by fairkern"),
        (lambda d: save_file({}, d / "model.safetensors", {"fairkern": "{"}), "not JSON"),
        (lambda d: save_file({}, d / "model.safetensors", {"fairkern": "{}"}), "names no format"),
        (lambda d: _edit_metadata(d / "model.safetensors", lambda c: c.update(schema=99)), "schema 99"),
        (lambda d: _edit_metadata(d / "model.safetensors", lambda c: c.update(plan="0")), "another plan"),
        (lambda d: _edit_metadata(d / "model.safetensors", lambda c: c.pop("shared")), "shared"),
    ],
)
def test_damaged_folders(saved, damage, message):
    case, _, _, folder = saved
    damage(folder)
    before = snapshot(case.model)
    with pytest.raises(ArtefactError, match=message):
        load_pruned(case.model, folder)
    assert_untouched(case.model, before)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_transformers(saved, sharded):
    case, _, _, folder = saved
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    if sharded:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(ArtefactError, match=r"save_pretrained writes: load it with from_pretrained\("):
        load_pruned(case.model, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.bias"), "lacks 'fc.bias'"),
        (lambda t: t.update(more=torch.ones(1)), "holds 'more'"),
        (lambda t: t.update({"fc.bias": torch.ones(4)}), "does not fit"),
    ],
)
def test_weights_that_do_not_fit(saved, change, message):
    case, _, _, folder = saved
    edit_tensors(folder / "model.safetensors", change)
    before = snapshot(case.model)
    with pytest.raises(ArtefactError, match=message):
        load_pruned(case.model, folder)
    assert_untouched(case.model, before)


def test_another_architecture(saved, tied_case):
    _, _, _, folder = saved
    with pytest.raises(PlanMismatchError):
        load_pruned(tied_case.model, folder)


def test_the_pruned_model_itself_is_not_fresh(saved):
    _, _, small, folder = saved
    with pytest.raises(PlanMismatchError, match="already"):
        load_pruned(small, folder)


def test_digest_ignores_order(plain_case):
    plan = plain_case.plan()
    assert weights_file.digest_of(plan) == weights_file.digest_of(replace(plan, axes=plan.axes[::-1]))
    assert weights_file.digest_of(plan) != weights_file.digest_of(plain_case.plan(seed=5))


def test_modules_that_ask_for_a_version(tmp_path):
    """MNASNet refuses a state whose modules name no version."""

    class Versioned(nn.Sequential):
        _version = 2

        def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
            if local_metadata.get("version") != 2:
                raise ValueError("no version")
            super()._load_from_state_dict(state, prefix, local_metadata, *rest)

    model = Versioned(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    units = solutions(model, [torch.randn(2, 4)])[0].units
    plan = build(units, random_removal(units, 0.5, seed=0))
    small = apply(model, plan)
    save_pruned(small, plan, tmp_path / "small")
    loaded = load_pruned(Versioned(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), tmp_path / "small")
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), small(x))
