"""`fk.hf.prune(walk="blocks")`: the folder that the whole model gives, of a model that is never there as a whole."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from bench.shipping.families import make_folder
from fairkern.artefacts.shard_writer import ShardWriter
from fairkern.cli import main
from fairkern.hf import by_blocks, walks
from fairkern.hf.folder import open_folder
from fairkern.hf.run import FolderOptions
from fairkern.walk import Walk, writing

pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file
SMALL: dict[str, Any] = {"sequence": 32, "samples": 12, "progress": False, "keep_params": 0.7}


LOOKED_AT_LATER = ("backend", "removal", "protect")  # once there is something to be done with them


@pytest.fixture(scope="module")
def units(made: Path) -> fk.UnitMap:
    """Of the folder's model: tracing it is no part of the walk."""
    model, _ = open_folder(made).load(None, torch.device("cpu"))
    ids = torch.zeros((2, 32), dtype=torch.int64)
    return fk.trace(model, {"input_ids": ids, "labels": ids})


@pytest.fixture(scope="module")
def whole(
    made: Path, text: Path, units: fk.UnitMap, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, fk.Report]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, fk.hf.prune(made, text, out=out, walk="whole", units=units, **SMALL)


def test_the_folder_is_that_of_the_whole_model(
    whole: tuple[Path, fk.Report], made: Path, text: Path, units: fk.UnitMap, tmp_path: Path
) -> None:
    before, report = whole
    out = tmp_path / "out"
    done = fk.hf.prune(made, text, out=out, walk="blocks", units=units, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = sorted(path.name for path in before.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in ("config.json", "generation_config.json", "plan.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (before / name).read_bytes(), name
    tensors, expected = (load_file(folder / "model.safetensors") for folder in (out, before))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert done.groups == report.groups
    for now, then in ((done.before, report.before), (done.after, report.after)):
        assert now["params"] == then["params"]
        assert now["cache_bytes_per_token"] == then["cache_bytes_per_token"]
        assert now["perplexity"] == pytest.approx(then["perplexity"], rel=1e-5)
    assert done.choices["walk"]["walk"] == "blocks"
    assert sorted(done.choices["walk"]["left_out"]) == ["latency_ms", "tokens_per_second"]
    assert report.choices["walk"] == {"walk": "whole", "why": "asked for"}
    assert json.loads((out / "report.json").read_text())["stages"].keys() == done.stages.keys()


def test_experts_by_the_names_of_files(text: Path, tmp_path: Path) -> None:
    model = make_folder("mixtral", tmp_path / "in", torch.bfloat16)
    ids = torch.zeros((2, 32), dtype=torch.int64)
    units = fk.trace(model.eval(), {"input_ids": ids, "labels": ids})
    for walk in ("whole", "blocks"):
        fk.hf.prune(tmp_path / "in", text, out=tmp_path / walk, walk=walk, units=units, **SMALL)
    tensors, expected = (load_file(tmp_path / walk / "model.safetensors") for walk in ("blocks", "whole"))
    assert any(".experts.0.w1." in name for name in expected)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("struck", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_run_that_ends_early_leaves_nothing(
    struck: BaseException, made: Path, text: Path, units: fk.UnitMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    plain = ShardWriter.write

    def write(self: ShardWriter, name: str, tensor: torch.Tensor) -> None:
        written.append(name)
        if len(written) == 20:
            raise struck
        plain(self, name, tensor)

    monkeypatch.setattr(writing.ShardWriter, "write", write)
    expected = KeyboardInterrupt if isinstance(struck, KeyboardInterrupt) else fk.InputError
    with pytest.raises(expected, match="" if expected is KeyboardInterrupt else "No space left"):
        fk.hf.prune(made, text, out=tmp_path / "out", walk="blocks", units=units, **SMALL)
    assert len(written) == 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensate": "joint"}, "compensate='joint' .it changes all layers together"),
        ({"iterations": 2}, "iterations=2"),
        ({"depth": True}, "depth=True"),
        ({"serve": "vllm"}, "serve='vllm'"),
        ({"walk": "block"}, "walk is 'block'"),
        ({"walk": "whole", "walk_folder": "there"}, "walk_folder is for what passes between blocks"),
    ],
)
def test_what_blocks_cannot_do(options: dict[str, Any], message: str, made: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(fk.InputError, match=message):
        fk.hf.prune(made, text, out=tmp_path / "out", **{"walk": "blocks", **SMALL, **options})
    assert list(tmp_path.iterdir()) == []


def test_second_moments_go_to_the_folder_that_is_asked_for(
    whole: tuple[Path, fk.Report], made: Path, text: Path, units: fk.UnitMap, tmp_path: Path
) -> None:
    moments, between = tmp_path / "moments", tmp_path / "between"
    how: dict[str, Any] = {"walk": "blocks", "walk_folder": between, "units": units, **SMALL}
    fk.hf.prune(made, text, out=tmp_path / "out", keep_moments=moments, **how)
    assert list(moments.glob("segment 0/*.safetensors"))
    assert (tmp_path / "out" / "plan.json").read_bytes() == (whole[0] / "plan.json").read_bytes()
    with pytest.raises(fk.InputError, match=r"keep_moments=.* is a folder with files in it"):
        fk.hf.prune(made, text, out=tmp_path / "again", keep_moments=moments, **how)
    assert not (tmp_path / "again").exists()
    assert list(between.iterdir()) == []


def test_second_moments_are_dropped_where_that_is_asked_for(
    whole: tuple[Path, fk.Report], made: Path, text: Path, units: fk.UnitMap, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"walk": "blocks", "walk_folder": tmp_path / "between", "units": units, **SMALL}
    done = fk.hf.prune(made, text, out=tmp_path / "out", keep_moments=False, **how)
    assert done.choices["compensation"] == "none"
    assert whole[1].choices["compensation"] == "sequential"
    bare, roomy = (fk.Plan.load(folder / "plan.json") for folder in (tmp_path / "out", whole[0]))
    assert bare.request == roomy.request
    for less, more in zip(bare.groups, roomy.groups, strict=True):  # compensation takes room for its biases
        assert {*less.removed.reshape(-1).tolist()} <= {*more.removed.reshape(-1).tolist()}
    with pytest.raises(fk.InputError, match="from second moments, which keep_moments=False drops"):
        fk.hf.prune(made, text, out=tmp_path / "again", keep_moments=False, compensate="sequential", **how)
    fk.hf.prune(made, text, out=tmp_path / "again", **how)
    assert (tmp_path / "again" / "plan.json").read_bytes() == (whole[0] / "plan.json").read_bytes()
    assert list((tmp_path / "between").iterdir()) == []


@pytest.mark.parametrize("name", sorted(FolderOptions.__annotations__))
def test_no_option_is_dropped_in_silence(
    name: str, made: Path, text: Path, units: fk.UnitMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no option can be is refused by the option's name, and so every one of them is looked at."""
    if name not in LOOKED_AT_LATER:
        monkeypatch.setattr(by_blocks, "absent", None)  # before anything is run
    options = {"walk": "blocks", "units": units, **SMALL, name: object()}
    with pytest.raises(fk.InputError, match=rf"\b{name}\b"):
        fk.hf.prune(made, text, out=tmp_path / "out", **options)


def test_what_memory_does_not_hold_goes_by_blocks(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cpu = open_folder(made), torch.device("cpu")
    weights = walks.weight_bytes(source, None)
    assert weights == (made / "model.safetensors").stat().st_size
    assert walks.weight_bytes(source, torch.bfloat16) == weights // 2
    free = walks.available(cpu)
    assert free is None or free > 2**20
    for there, options, walk in (
        (walks.TIMES * weights, {"serve": "hf"}, Walk.WHOLE),
        (walks.TIMES * weights - 1, {"serve": "hf"}, Walk.BLOCKS),
        (walks.TIMES * weights - 1, {"serve": "deci"}, Walk.WHOLE),
        (None, {"serve": "hf"}, Walk.WHOLE),
    ):
        monkeypatch.setattr(walks, "available", lambda device, there=there: there)
        assert walks.chosen(None, source, options, None, cpu).walk is walk


def test_the_command_hands_it_on(made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", "--hf", made, "--data", text, "--keep-params", "0.7", "-o", tmp_path / "out", "--walk", "blocks"]
    assert main([*map(str, words), "--depth"]) == 2
    assert "--walk blocks cannot be had with --depth (" in capsys.readouterr().err
