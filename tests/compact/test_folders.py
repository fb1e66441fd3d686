"""A pruned model's folder: written into and replaced while others read it, and refused where anything in it changed."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fairkern as fk
from fairkern.artefacts.files import SUM
from fairkern.compact import apply, load_pruned, save_pruned
from fairkern.errors import ArtefactError
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.artefacts.edited import edit_json, edit_tensors, without_sum

FILES = ("model.safetensors", "plan.json")


class Net(nn.Module):
    """A norm with whole numbers and truth values among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("flags", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.hidden(x)).relu())


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net().eval()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
UNITS = fk.trace(net(), X)


def cut(seed: int) -> tuple[nn.Module, fk.Plan]:
    plan = fk.Plan.of(build(UNITS, random_removal(UNITS, 0.5, seed=seed)))
    return apply(net(seed), plan), plan


def outputs(seed: int) -> Tensor:
    return cut(seed)[0](X).detach()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pruned(*cut(0), tmp_path / "small")
    return tmp_path / "small"


def test_into_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the same folder, with what else it has, its permissions, and those who work in it."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o750)
    before = tmp_path.stat()
    for seed in (0, 1):  # empty, then with the files of another model
        save_pruned(*cut(seed), ".")
        assert (tmp_path.stat().st_ino, tmp_path.stat().st_mode) == (before.st_ino, before.st_mode)
        assert sorted(os.listdir()) == sorted(FILES)
        assert torch.equal(load_pruned(net(9), ".")(X), outputs(seed))


def test_a_folder_above_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    (tmp_path / "small").mkdir()
    tmp_path.chmod(0o550)
    try:
        save_pruned(*cut(0), tmp_path / "small")
    finally:
        tmp_path.chmod(0o750)
    assert torch.equal(load_pruned(net(9), tmp_path / "small")(X), outputs(0))


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_an_interruption_between_the_two_files_is_recognised(
    renamed: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, done = os.replace, []

    def interrupted(one: Path, other: Path) -> None:
        if len(done) == renamed:
            raise KeyboardInterrupt
        done.append(other)
        rename(one, other)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        if renamed == 2:
            save_pruned(*cut(1), folder)
        else:
            with pytest.raises(KeyboardInterrupt):
                save_pruned(*cut(1), folder)
    assert sorted(os.listdir(folder)) == sorted(FILES)
    if renamed == 1:
        with pytest.raises(ArtefactError, match="another plan"):
            load_pruned(net(9), folder)
    else:
        assert torch.equal(load_pruned(net(9), folder)(X), outputs(renamed // 2))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", [1, 2])
def test_one_file_of_another_model(name: str, other: int, folder: Path) -> None:
    """Another plan; or the same plan, but other weights, which are then that model's."""
    small, plan = cut(0)
    save_pruned(*(cut(1) if other == 1 else (fk.apply(net(5), plan), plan)), folder.parent / "other")
    shutil.copy(folder.parent / "other" / name, folder / name)
    if other == 1:
        with pytest.raises(ArtefactError, match="another plan"):
            load_pruned(net(9), folder)
    else:
        expected = fk.apply(net(5), plan) if name == FILES[0] else small
        assert torch.equal(load_pruned(net(9), folder)(X), expected(X))


def test_a_plan_of_which_only_what_is_not_an_axis_differs(folder: Path) -> None:
    """With a sum of its own that is right: the weights say which plan they are of."""
    edit_json(folder / "plan.json", lambda content: content["attributes"][0].update(after=1))
    with pytest.raises(ArtefactError, match="another plan"):
        load_pruned(net(9), folder)


def test_any_bit_of_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole, expected = path.read_bytes(), outputs(0)
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(0, begin, 41), *range(begin, len(whole), 5)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded = load_pruned(net(9), folder)
        except ArtefactError:
            continue
        assert place < begin
        assert torch.equal(loaded(X), expected)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors["hidden.bias"].zero_(),
        lambda tensors: tensors["norm.num_batches_tracked"].add_(1),
        lambda tensors: tensors["flags"].logical_not_(),
        lambda tensors: tensors.update({"norm.weight": tensors["norm.bias"], "norm.bias": tensors["norm.weight"]}),
        lambda tensors: tensors.update({"out.weight": tensors["out.weight"].view(torch.int32)}),
        lambda tensors: tensors.pop("out.bias"),
    ],
)
def test_weights_written_anew_by_somebody_else(edit, folder: Path) -> None:
    """The texts are those that were there, the sum among them."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    tensors = load_file(path)
    save_file(tensors, path, texts)
    assert torch.equal(load_pruned(net(9), folder)(X), outputs(0))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    edit(tensors)
    save_file(tensors, path, texts)
    with pytest.raises(ArtefactError, match="does not have the sum that it names: the file was edited or damaged"):
        load_pruned(net(9), folder)


def older(folder: Path) -> None:
    """As it was written before files had sums."""
    plan = fk.Plan.load(folder / "plan.json")
    edit_json(folder / "plan.json", without_sum)
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    del texts[SUM]
    content = {**json.loads(texts["fairkern"]), "schema": 3, "plan": fk.compact.weights_file.digest_of(plan)}
    save_file(load_file(path), path, {**texts, "fairkern": json.dumps(content)})


def test_an_older_folder_is_read_with_a_note(folder: Path) -> None:
    older(folder)
    with pytest.warns(UserWarning, match="written before files had a sum") as noted:
        loaded = load_pruned(net(9), folder)
    assert {str(note.message).partition(" was ")[0] for note in noted} == {str(folder / name) for name in FILES}
    assert torch.equal(loaded(X), outputs(0))


OTHER_KINDS = [
    ("out.weight", torch.int32),
    ("out.weight", torch.complex64),
    ("flags", torch.uint8),
    ("flags", torch.float32),
    ("norm.num_batches_tracked", torch.float64),
    ("norm.num_batches_tracked", torch.int32),
]


@pytest.mark.filterwarnings("ignore:.*before files had a sum")
@pytest.mark.parametrize("with_sum", [True, False])
@pytest.mark.parametrize(("name", "dtype"), OTHER_KINDS)
def test_numbers_of_another_kind_are_not_cast(name: str, dtype: torch.dtype, with_sum: bool, folder: Path) -> None:
    path = folder / "model.safetensors"
    if with_sum:
        edit_tensors(path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    else:
        older(folder)
        with safe_open(path, "pt") as file:
            texts = file.metadata()
        tensors = load_file(path)
        save_file({**tensors, name: tensors[name].to(dtype)}, path, texts)
    with pytest.raises(ArtefactError, match=f"holds '{name}' as {dtype}, where the model has"):
        load_pruned(net(9), folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floating_point_is_cast_to_floating_point(dtype: torch.dtype, folder: Path) -> None:
    loaded = load_pruned(net(9).to(dtype), folder)
    assert torch.equal(loaded.get_parameter("out.weight"), cut(0)[0].get_parameter("out.weight").to(dtype))


def test_a_scalar_that_has_become_a_row_is_refused(folder: Path) -> None:
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"norm.num_batches_tracked": torch.zeros(0, dtype=torch.int64)}),
    )
    with pytest.raises(ArtefactError, match="does not fit"):
        load_pruned(net(9), folder)


def test_others_that_replace_a_folder_while_it_is_read(folder: Path) -> None:
    """What comes is the one model or the other, or nothing; also where the folder itself goes."""
    models, expected = [cut(0), cut(1)], [outputs(0), outputs(1)]
    save_pruned(*models[1], folder.parent / "spare")
    done, failed = threading.Event(), []

    def replace() -> None:
        k = 0
        try:
            while not done.is_set():
                k += 1
                if k % 3:
                    save_pruned(*models[k % 2], folder)
                else:
                    folder.rename(folder.parent / "gone")
                    (folder.parent / "spare").rename(folder)
                    (folder.parent / "gone").rename(folder.parent / "spare")
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=replace)
    other.start()
    read, end = [0, 0], time.monotonic() + 20
    try:
        while min(read) < 5 and not failed and time.monotonic() < end:
            try:
                loaded = load_pruned(net(9), folder)(X)
            except ArtefactError:
                continue
            matches = [torch.equal(loaded, y) for y in expected]
            assert any(matches)
            read[matches.index(True)] += 1
    finally:
        done.set()
        other.join()
    assert not failed
    assert min(read) > 0
    assert sorted(os.listdir(folder)) == sorted(FILES)
