"""Checkpoints in shards: opened, read in parts, written one tensor at a time, taken up again after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairkern.artefacts.shard_writer import MANIFEST, ShardWriter
from fairkern.artefacts.shards import INDEX, open_shards
from fairkern.artefacts.writing import resumed_folder
from fairkern.errors import ArtefactError, InputError

ROOT = Path(__file__).resolve().parents[2]


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "wide": torch.randn(40, 6, dtype=torch.bfloat16),
        "bias": torch.randn(7, dtype=torch.float32),
        "stack": torch.randn(3, 4, 5),
        "codes": torch.randint(0, 255, (9,), dtype=torch.uint8),
        "number": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False]),
    }


def _described(tensors):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _write(place: Path, tensors, order=None, largest=300, job=None) -> dict[str, str]:
    with ShardWriter(place, _described(tensors), job=job or {"of": "a test"}, largest=largest) as writer:
        for name in order or writer.order:
            writer.write(name, tensors[name])
        return dict(writer.finish())


def _all(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def test_what_is_written_is_read_by_the_format_s_own_package(tmp_path):
    tensors = _tensors()
    sums = _write(tmp_path, tensors)
    assert len(sums) > 1
    found = {}
    for name, total in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == total
        found |= load_file(tmp_path / name)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    listed = json.loads((tmp_path / INDEX).read_text())
    assert listed["weight_map"].keys() == tensors.keys()
    assert listed["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())


def test_one_shard_has_no_index(tmp_path):
    assert list(_write(tmp_path, _tensors(), largest=10**9)) == ["model.safetensors"]
    assert not (tmp_path / INDEX).exists()
    with open_shards(tmp_path) as shards:
        assert set(shards.shapes) == set(_tensors())


def test_rows_and_whole_tensors_are_read_into_memory_of_their_own(tmp_path):
    tensors = _tensors()
    _write(tmp_path, tensors)
    with open_shards(tmp_path) as shards:
        for name, tensor in tensors.items():
            assert (shards.shapes[name], shards.dtypes[name]) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(shards.read(name), tensor)
            assert shards.size_of(name) == tensor.numel() * tensor.element_size()
        assert torch.equal(shards.read("stack", 1, 3), tensors["stack"][1:3])
        assert torch.equal(shards.read("wide", 39), tensors["wide"][39:])
        assert shards.read("wide", 5, 5).shape == (0, 6)
        place = torch.zeros(40, 6, dtype=torch.bfloat16)
        assert shards.read("wide", into=place) is place
        assert torch.equal(place, tensors["wide"])
        for into in (torch.zeros(40, 6), torch.zeros(6, 40, dtype=torch.bfloat16), place.T.contiguous().T):
            with pytest.raises(InputError, match="has no place"):
                shards.read("wide", into=into)
        with pytest.raises(InputError, match="40 rows"):
            shards.read("wide", 3, 41)


def test_the_order_of_writing_and_the_size_of_pieces_change_no_byte(tmp_path):
    tensors = _tensors()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "a", tensors)
    _write(tmp_path / "b", tensors, order=sorted(tensors, reverse=True))
    with ShardWriter(tmp_path / "c", _described(tensors), job={"of": "a test"}, largest=300) as writer:
        for name in ("stack", "wide"):
            for row in tensors[name]:
                writer.append(name, row[None])
        for name in tensors.keys() - {"stack", "wide"}:
            writer.write(name, tensors[name])
        writer.finish()
    assert _all(tmp_path / "a") == _all(tmp_path / "b") == _all(tmp_path / "c")


def test_an_empty_tensor_may_come_when_its_shard_is_whole(tmp_path):
    tensors = _tensors()
    with ShardWriter(tmp_path, _described(tensors), job={}) as writer:
        for name in [*(tensors.keys() - {"empty"}), "empty"]:
            writer.write(name, tensors[name])
        assert writer.done("empty")
        assert set(writer.finish()) == {"model.safetensors"}
    assert load_file(tmp_path / "model.safetensors")["empty"].shape == (0, 4)


def test_what_does_not_fit_is_refused(tmp_path):
    tensors = _tensors()
    with ShardWriter(tmp_path, _described(tensors), job={}) as writer:
        for name, wrong in (("wide", torch.zeros(40, 6)), ("bias", torch.zeros(8)), ("stack", torch.zeros(2, 4, 5))):
            with pytest.raises(InputError, match=name):
                writer.write(name, wrong)
        with pytest.raises(InputError, match="was not written"):
            writer.finish()
    with pytest.raises(InputError, match="cannot hold"):
        ShardWriter(tmp_path, {"x": (torch.complex128, (2,))}, job={})


def test_a_run_goes_on_with_the_shards_that_are_finished(tmp_path):
    tensors = _tensors()
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir(), half.mkdir()
    _write(whole, tensors)
    with ShardWriter(half, _described(tensors), job={"of": "a test"}, largest=300) as writer:
        writer.note(inputs={"a": "b"})
        writer.write("wide", tensors["wide"])
        assert writer.done("wide")
        writer.append("stack", tensors["stack"][:1])
    with ShardWriter(half, _described(tensors), job={"of": "a test"}, largest=300) as writer:
        assert writer.notes == {"inputs": {"a": "b"}}
        assert [name for name in tensors if writer.done(name)] == ["wide"]
        writer.notes.clear()
        for name in tensors.keys() - {"wide"}:
            writer.write(name, tensors[name])
        writer.finish()
    assert _all(whole) == _all(half)


@pytest.mark.parametrize("spoil", ["another byte", "short", "gone"])
def test_a_finished_shard_that_has_changed_is_written_anew(spoil, tmp_path):
    tensors = _tensors()
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir(), half.mkdir()
    _write(whole, tensors)
    first = next(iter(_write(half, tensors)))
    path = half / first
    data = path.read_bytes()
    path.unlink()
    if spoil != "gone":
        path.write_bytes(data[:-9] if spoil == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    with ShardWriter(half, _described(tensors), job={"of": "a test"}, largest=300) as writer:
        gone = [name for name in tensors if not writer.done(name)]
        assert gone
        assert len(gone) < len(tensors)
        assert writer.to_come == len(data)
        assert first not in writer.files
        assert not path.exists()
        for name in gone:
            writer.write(name, tensors[name])
        writer.finish()
    assert _all(whole) == _all(half)


def test_another_job_and_a_damaged_manifest_begin_anew(tmp_path):
    tensors = _tensors()
    _write(tmp_path, tensors, job={"of": "another"})
    with ShardWriter(tmp_path, _described(tensors), job={"of": "a test"}, largest=300) as writer:
        assert not any(writer.done(name) for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    _write(tmp_path, tensors)
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes()[:-9])
    with ShardWriter(tmp_path, _described(tensors), job={"of": "a test"}, largest=300) as writer:
        assert not any(writer.done(name) for name in tensors)


_KILLED = """
import os, sys, torch
from fairkern.artefacts.shard_writer import MANIFEST, ShardWriter
from fairkern.artefacts.writing import resumed_folder
torch.manual_seed(0)
tensors = {str(i): torch.randn(8, 8) for i in range(12)}
with resumed_folder(sys.argv[1], MANIFEST) as place:
    writer = ShardWriter(place, {n: (t.dtype, t.shape) for n, t in tensors.items()}, job={}, largest=600)
    for n, t in tensors.items():
        if writer.done(n):
            continue
        if n == sys.argv[2]:
            writer.append(n, t[:3])
            os.kill(os.getpid(), 9)
        writer.write(n, t)
    writer.finish()
"""


def test_a_folder_is_there_whole_or_not_at_all_and_a_killed_run_is_gone_on_with(tmp_path):
    def run(out: str, at: str) -> int:
        command = [sys.executable, "-c", _KILLED, str(tmp_path / out), at]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode

    assert run("whole", "never") == 0
    for at in ("0", "7"):
        assert run("out", at) == -9
        assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "out.partial" / MANIFEST).read_text())["files"]
    assert run("out", "never") == 0
    assert _all(tmp_path / "out") == _all(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_folder_in_use_or_of_somebody_else_is_not_written_into(tmp_path):
    with (
        resumed_folder(tmp_path / "out", MANIFEST),
        pytest.raises(BlockingIOError, match="another process"),
        resumed_folder(tmp_path / "out", MANIFEST),
    ):
        pass
    (tmp_path / "more.partial").mkdir()
    (tmp_path / "more.partial" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="unfinished run"), resumed_folder(tmp_path / "more", MANIFEST):
        pass
    assert (tmp_path / "more.partial" / "mine.txt").read_text() == "mine"


def test_what_is_no_checkpoint_is_refused(tmp_path):
    def refused(path: Path, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match), open_shards(path):
            pass

    refused(tmp_path / "absent", InputError, "is not there")
    refused(tmp_path, InputError, "no safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, InputError, "pickle")
    refused(tmp_path / "pytorch_model.bin", InputError, "pickle")
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    with open_shards(tmp_path) as shards:
        assert list(shards.shapes) == ["a"]
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "two.safetensors")
    refused(tmp_path, InputError, "2 files of the ending")

    def index(listed: object) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": listed}))

    index({"a": "two.safetensors", "b": "two.safetensors"})
    with open_shards(tmp_path) as shards:
        assert shards.read("a").tolist() == [1, 1]
    index({"a": "one.safetensors", "b": "two.safetensors"})
    with open_shards(tmp_path) as shards:
        assert shards.read("a").tolist() == [0, 0]
    for listed, error, match in (
        ({"b": "one.safetensors"}, ArtefactError, "lacks b"),
        ({"b": "three.safetensors"}, InputError, "lacks three"),
        ({"b": "../two.safetensors"}, ArtefactError, "no file beside it"),
        ({"b": "pytorch_model.bin"}, InputError, "pickle"),
        ({}, ArtefactError, "no weight_map"),
    ):
        index(listed)
        refused(tmp_path, error, match)
    (tmp_path / INDEX).write_text("{")
    refused(tmp_path, ArtefactError, "not JSON")
    two = tmp_path / "two.safetensors"
    two.write_bytes(two.read_bytes()[:-1])
    refused(two, ArtefactError, "truncated.*write or fetch it again")


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    save_file({"a": torch.zeros(100)}, tmp_path / "one.safetensors")
    with open_shards(tmp_path) as shards:
        os.truncate(tmp_path / "one.safetensors", 200)
        with pytest.raises(ArtefactError, match="ends within"):
            shards.read("a")
