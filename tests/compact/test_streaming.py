"""A checkpoint cut without its model, against the model cut and its tensors laid out as files have them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fairkern as fk
from fairkern.artefacts.shard_writer import MANIFEST, ShardWriter
from fairkern.artefacts.shards import open_shards
from fairkern.artefacts.tensors import open_tensors
from fairkern.compact import streaming
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.types import Axis, FilePart, Files, FileTensor, Plan, PlanAxis, Silence
from tests import experts
from tests.listed import UNEVEN, X, net

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ((0, 0, 1), (1, 0, 1))

State = dict[str, Tensor]


def write(folder: Path, tensors: Mapping[str, Tensor], largest: int = 200) -> Path:
    """A checkpoint in small shards."""
    folder.mkdir()
    with ShardWriter(folder, {n: (t.dtype, t.shape) for n, t in tensors.items()}, job={}, largest=largest) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
        writer.finish()
    (folder / MANIFEST).unlink()
    return folder


def read(folder: Path) -> State:
    with open_shards(folder) as shards:
        return {name: shards.read(name) for name in shards.shapes}


def same(found: State, expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def plan_of(model: nn.Module, inputs: Tensor, share: float = 0.4, seed: int = 0, verify: bool = False) -> Plan:
    units = fk.trace(model, inputs, verify=verify)
    return build(units, random_removal(units, share, seed))


# how files lay out fused experts: the tensors, by plain indexing, and what a plan says of them


def one_by_one(state: State) -> State:
    """Every expert by itself, gate and up apart."""
    made = {name: t for name, t in state.items() if not name.startswith("experts.")}
    half = state["experts.gate_up_proj"].shape[1] // 2
    for e, (up, down) in enumerate(zip(state["experts.gate_up_proj"], state["experts.down_proj"], strict=True)):
        made |= {f"experts.{e}.w1.weight": up[:half], f"experts.{e}.w3.weight": up[half:]}
        made[f"experts.{e}.w2.weight"] = down
    return {name: t.contiguous() for name, t in made.items()}


def said_one_by_one(shapes: Mapping[str, tuple[int, ...]]) -> tuple[FileTensor, ...]:
    count, wide, width = shapes["experts.gate_up_proj"]
    tensors = []
    for e in range(count):
        for name, first in (("w1", 0), ("w3", wide // 2)):
            part = FilePart("experts.gate_up_proj", (e, (0, first, 1), (1, 0, 1)), wide // 2)
            tensors.append(FileTensor(f"experts.{e}.{name}.weight", (wide // 2, width), (part,)))
        part = FilePart("experts.down_proj", (e, *WHOLE), width)
        tensors.append(FileTensor(f"experts.{e}.w2.weight", (width, wide // 2), (part,)))
    return tuple(tensors)


def interleaved(state: State) -> State:
    """Gate and up in turns, transposed, in one stack."""
    up = state["experts.gate_up_proj"]
    half = up.shape[1] // 2
    turned = torch.stack([up[:, :half], up[:, half:]], dim=2).flatten(1, 2).transpose(1, 2)
    return {**state, "experts.gate_up_proj": turned.contiguous()}


def said_interleaved(shapes: Mapping[str, tuple[int, ...]]) -> tuple[FileTensor, ...]:
    count, wide, width = shapes["experts.gate_up_proj"]
    name = "experts.gate_up_proj"
    halves = (FilePart(name, ((0, 0, 1), (2, k, 1), (1, 0, 1)), wide // 2, 2) for k in (0, wide // 2))
    return (FileTensor(name, (count, width, wide), tuple(halves), 2),)


def in_rows(state: State) -> State:
    """All experts' rows one below the other, in a matrix; gate and up in turns row by row in another."""
    up, down = state["experts.gate_up_proj"], state["experts.down_proj"]
    half = up.shape[1] // 2
    turned = torch.stack([up[:, :half], up[:, half:]], dim=2).flatten(1, 2)
    rest = {name: t for name, t in state.items() if not name.startswith("experts.")}
    return {**rest, "ffn.down": down.flatten(0, 1), "ffn.up": turned.flatten(0, 1).contiguous()}


def said_in_rows(shapes: Mapping[str, tuple[int, ...]]) -> tuple[FileTensor, ...]:
    count, wide, width = shapes["experts.gate_up_proj"]
    down = tuple(FilePart("experts.down_proj", (e, *WHOLE), width) for e in range(count))
    up = tuple(
        FilePart("experts.gate_up_proj", (e, (0, k, 1), (1, 0, 1)), wide // 2, 2)
        for e in range(count)
        for k in (0, wide // 2)
    )
    return (
        FileTensor("ffn.down", (count * width, wide // 2), down),
        FileTensor("ffn.up", (count * wide, width), up),
    )


LAYOUTS: dict[str, tuple[Callable[[State], State], Callable[..., tuple[FileTensor, ...]]]] = {
    "one by one": (one_by_one, said_one_by_one),
    "interleaved": (interleaved, said_interleaved),
    "in rows": (in_rows, said_in_rows),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_experts_of_files_are_those_of_the_cut_stack(layout, seed, tmp_path):
    """Whole experts go and those behind them move up, and every expert loses inner units of its own."""
    laid_out, said = LAYOUTS[layout]
    model = experts.build(experts.Fused, experts.Sigmoid, dtype=torch.bfloat16, shared=True)
    plan = plan_of(model.float(), experts.samples()[0].float(), seed=seed)
    model = model.bfloat16()
    assert any(len(g.removed) for g in plan.groups if g.kind == "expert")
    plan = replace(plan, files=Files(said(plan.shapes)))
    plan.files and fk.Plan.of(plan).save(tmp_path / "plan.json")
    plan = fk.Plan.load(tmp_path / "plan.json")
    source = write(tmp_path / "in", laid_out(model.state_dict()))
    done = fk.compact_checkpoint(source, plan, tmp_path / "out", largest=300)
    same(read(tmp_path / "out"), laid_out(fk.apply(model, plan).state_dict()))
    for name, total in {**done.outputs, **done.inputs}.items():
        where = tmp_path / ("out" if name in done.outputs else "in") / name
        assert hashlib.sha256(where.read_bytes()).hexdigest() == total or (name in done.outputs and name in done.inputs)


def test_experts_and_blocks_of_lists_are_numbered_anew(tmp_path):
    from bench.zoo.mixtures import OneHot

    model = net(OneHot, sizes=UNEVEN)
    plan = plan_of(model, X, verify=True)
    assert plan.lists
    fk.compact_checkpoint(write(tmp_path / "in", model.state_dict()), plan, tmp_path / "out")
    same(read(tmp_path / "out"), fk.apply(model, plan).state_dict())


class Fused(nn.Module):
    """Queries and keys are one matrix in the files; a table is not saved, and the output is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.q, self.k, self.up = nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(10, 8)
        self.down, self.head = nn.Linear(8, 4), nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.down(torch.cat([self.q(x), self.k(x)], dim=-1).relu() @ self.up.weight.T))


def fused(state: State) -> State:
    made = {name: t for name, t in state.items() if name[0] not in "qk" and name != "head.weight"}
    for kind in ("weight", "bias"):
        made[f"qk.{kind}"] = torch.cat([state[f"q.{kind}"], state[f"k.{kind}"]])
    return made


FUSED = (
    FileTensor("qk.weight", (10, 4), (FilePart("q.weight", WHOLE, 6), FilePart("k.weight", WHOLE, 4))),
    FileTensor("qk.bias", (10,), (FilePart("q.bias", ((0, 0, 1),), 6), FilePart("k.bias", ((0, 0, 1),), 4))),
)


def fused_plan(model: nn.Module) -> Plan:
    plan = plan_of(model, torch.arange(6).reshape(2, 3))
    assert any(len(a.removed) and a.axis == Axis("k.weight", 0) for a in plan.axes)
    return plan


def test_parameters_of_one_matrix_tied_names_and_tables_that_are_not_saved(tmp_path):
    torch.manual_seed(0)
    model = Fused()
    plan = replace(fused_plan(model), files=Files(FUSED, absent=("table",)))
    source = write(tmp_path / "in", fused(model.state_dict()))
    done = fk.compact_checkpoint(source, plan, tmp_path / "out")
    same(read(tmp_path / "out"), fused(fk.apply(model, plan).state_dict()))
    assert done.absent == ("table",)


def test_without_anything_said_names_are_those_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    plan = plan_of(model, torch.randn(2, 3, 8, 8))
    for name, largest in (("shards", 300), ("one", 10**9)):
        source = write(tmp_path / name, model.state_dict(), largest)
        done = fk.compact_checkpoint(source, plan, tmp_path / f"{name} out", largest=largest)
        same(read(tmp_path / f"{name} out"), fk.apply(model, plan).state_dict())
        assert (tmp_path / f"{name} out" / "plan.json").is_file()
        assert done.after < done.before == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    alone = tmp_path / "alone.safetensors"
    save_file(model.state_dict(), alone)
    fk.compact_checkpoint(alone, plan, tmp_path / "of a file")
    same(read(tmp_path / "of a file"), fk.apply(model, plan).state_dict())


def test_it_takes_some_rows_at_a_time(tmp_path, monkeypatch):
    model = experts.build(dtype=torch.float32)
    plan = plan_of(model, experts.samples()[0].float())
    source = write(tmp_path / "in", model.state_dict())
    monkeypatch.setattr(streaming, "_CHUNK", 24)
    fk.compact_checkpoint(source, plan, tmp_path / "out")
    same(read(tmp_path / "out"), fk.apply(model, plan).state_dict())


def test_the_configuration_follows_and_what_belongs_to_it_comes_along(tmp_path):
    model = experts.build(dtype=torch.float32)
    plan = plan_of(model, experts.samples()[0].float())
    change = fk.Plan.of(plan)
    from fairkern.types import AttributeChange, ConfigChange

    plan = replace(
        change,
        config=(ConfigChange("experts", 4, 3), ConfigChange("text.inner", 5, 3), ConfigChange("head_dim", None, 2)),
        attributes=(*plan.attributes, AttributeChange("", "config.layers", 2, 1)),
    )
    source = write(tmp_path / "in", model.state_dict())
    said = {"experts": 4, "text": {"inner": 5, "other": 1}, "layers": 2, "architectures": ["Net"]}
    (source / "config.json").write_text(json.dumps(said))
    for name in ("tokenizer.json", "LICENSE", "generation_config.json", "notes.txt", "modeling.py"):
        (source / name).write_text(name)
    fk.compact_checkpoint(source, plan, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {**said, "experts": 3, "text": {"inner": 3, "other": 1}, "layers": 1, "head_dim": 2}
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "LICENSE", "generation_config.json"} <= left
    assert not {"notes.txt", "modeling.py"} & left
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    for name, total in {**manifest["files"], **manifest["notes"]["beside"]}.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == total
    for name, total in manifest["notes"]["inputs"].items():
        assert hashlib.sha256((source / name).read_bytes()).hexdigest() == total
    assert left == {*manifest["files"], *manifest["notes"]["beside"], MANIFEST}
    (source / "config.json").write_text(json.dumps({**said, "experts": 5}))
    with pytest.raises(fk.PlanMismatchError, match="is 5, the plan expects 4"):
        fk.compact_checkpoint(source, plan, tmp_path / "another")


def small(tmp_path: Path) -> tuple[Path, Plan, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    return write(tmp_path / "in", model.state_dict()), plan_of(model, torch.randn(2, 6)), model


def test_what_does_not_belong_together_is_refused_and_leaves_nothing(tmp_path):
    source, plan, model = small(tmp_path)

    def refused(error: type[Exception], match: str, *, folder: Path = source, by: Plan = plan, out: str = "out"):
        with pytest.raises(error, match=match):
            fk.compact_checkpoint(folder, by, tmp_path / out)
        assert not (tmp_path / out).exists() or out == "in"
        assert not (tmp_path / f"{out}.partial").exists()

    wide = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))
    refused(fk.PlanMismatchError, "0.weight dim 0 has 8 positions here", by=plan_of(wide, torch.randn(2, 6)))
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 5))
    refused(fk.PlanMismatchError, "nothing of 3", by=plan_of(other, torch.randn(2, 6)))
    shorter = replace(plan, shapes={n: s for n, s in plan.shapes.items() if n != "2.bias"})
    refused(fk.PlanMismatchError, "name_files", by=shorter)
    refused(fk.PlanMismatchError, "does not know$", by=replace(shorter, files=Files()))
    refused(fk.InputError, "it lies in the checkpoint", out="in/out")
    refused(fk.InputError, "it lies in the checkpoint", out="in")
    refused(fk.InputError, "is not there", folder=tmp_path / "absent")
    refused(fk.InputError, "expected a Plan", by=source)
    shards = sorted(source.glob("*.safetensors"))
    cut = shards[0].read_bytes()
    shards[0].write_bytes(cut[:-3])
    refused(fk.ArtefactError, "truncated")
    shards[0].unlink()
    refused(fk.InputError, "lacks model-00001")
    for path in source.iterdir():
        path.unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    refused(fk.InputError, "pickle")


def test_a_folder_that_is_not_empty_and_a_full_disk(tmp_path, monkeypatch):
    source, plan, model = small(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(fk.InputError, match="not empty"):
        fk.compact_checkpoint(source, plan, tmp_path / "full")
    usage = streaming.shutil.disk_usage
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(fk.InputError, match="the disk has 1,000"):
        fk.compact_checkpoint(source, plan, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    monkeypatch.undo()
    write_, written = os.pwrite, []

    def full(descriptor: int, data: bytes, at: int) -> int:
        written.append(len(data))
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        return write_(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(fk.InputError, match=r"No space left on device; what is finished stays in .*out\.partial"):
        fk.compact_checkpoint(source, plan, tmp_path / "out", largest=100)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    for path in (tmp_path / "out.partial").glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(fk.InputError, match="the disk has 1,000"):
        fk.compact_checkpoint(source, plan, tmp_path / "out", largest=100)
    monkeypatch.undo()
    fk.compact_checkpoint(source, plan, tmp_path / "out", largest=100)
    same(read(tmp_path / "out"), fk.apply(model, plan).state_dict())
    assert not (tmp_path / "out.partial").exists()


def test_the_command_says_what_is_left_and_that_nothing_was_folded_in(tmp_path, capsys):
    from fairkern.cli import main

    source, plan, model = small(tmp_path)
    path = tmp_path / "plan.json"
    fk.Plan.of(plan).save(path)
    fk.summarise(fk.Plan.of(plan), compensation="sequential").save(tmp_path / "report.json")
    command = ["compact", str(source), "--plan", str(path), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().err
    size = sum(t.numel() * 4 for t in fk.apply(model, plan).state_dict().values())
    assert f"404 → {size} bytes of weights" in said
    assert "nothing was folded in" in said
    assert main(command) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["compact", str(source), "--plan", str(source), "-o", str(tmp_path / "other")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_what_an_expert_loses_otherwise_than_its_file_can_hold_is_refused():
    """Two sets that lose other rows of what is one row in the file."""
    removed = np.array([[0], [1]])
    axis = PlanAxis(Axis("stack", 1), 2, removed, Silence.NONE)
    part = FilePart("stack", ((0, 0, 1), 0, (1, 0, 1)), 2)
    plan = Plan("Net", (), (axis,), (), {"stack": (2, 2, 3)}, files=Files((FileTensor("row", (2, 3), (part,)),)))
    from fairkern.compact.stored import Stored

    stored = Stored(plan)
    with pytest.raises(fk.PlanMismatchError, match="every set loses others"):
        stored.cut(stored.tensor("row"))


# killed and taken up again

_RUN = """
import sys, torch
import fairkern as fk
fk.compact_checkpoint(sys.argv[1], fk.Plan.load(sys.argv[2]), sys.argv[3], largest=1500)
"""


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a hundred shards, its plan, and what is left of it."""
    place = tmp_path_factory.mktemp("longer")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{k}.weight": torch.randn(24, 24, generator=generator) for k in range(40)}
    write(place / "in", tensors, 20000)
    plan = drawn(tensors, 0)
    plan.save(place / "plan.json")
    fk.compact_checkpoint(place / "in", plan, place / "whole", largest=1500)
    return place, place / "whole"


def drawn(tensors: Mapping[str, Tensor], seed: int) -> fk.Plan:
    """A plan that takes ten rows of every tensor."""
    generator = np.random.default_rng(seed)
    rows = {name: np.sort(generator.permutation(24)[:10]) for name in tensors}
    axes = tuple(PlanAxis(Axis(name, 0), 24, gone, Silence.NONE) for name, gone in rows.items())
    return fk.Plan("Net", (), axes, (), {name: tuple(t.shape) for name, t in tensors.items()})


def test_killed_after_any_write_it_goes_on_to_the_same_bytes(longer, tmp_path, monkeypatch):
    """Each run stops at a write drawn at random, in which as much of it as was drawn is written; the last one ends."""
    place, whole = longer
    plan = fk.Plan.load(place / "plan.json")
    generator = np.random.default_rng(0)
    write_ = os.pwrite

    class Killed(BaseException):
        pass

    def stops(left: list[int], descriptor: int, data: memoryview, at: int) -> int:
        left[0] -= 1
        if not left[0]:
            write_(descriptor, data[: len(data) // 2], at)
            raise Killed
        return write_(descriptor, data, at)

    for _ in range(20):
        monkeypatch.setattr(os, "pwrite", partial(stops, [int(generator.integers(1, 5))]))
        with pytest.raises(Killed):
            fk.compact_checkpoint(place / "in", plan, tmp_path / "out", largest=1500)
    monkeypatch.undo()
    begun = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*.safetensors")}
    assert 5 < len(begun) < 40
    spoilt = tmp_path / "out.partial" / begun.popitem()[0]
    data = spoilt.read_bytes()
    spoilt.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fk.compact_checkpoint(place / "in", plan, tmp_path / "out", largest=1500)
    assert _bytes(tmp_path / "out") == _bytes(whole)
    for name, modified in begun.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == modified, "was written again"


@pytest.mark.slow
def test_killed_at_twenty_moments_it_goes_on_to_the_same_bytes(longer, tmp_path):
    place, whole = longer
    command = [sys.executable, "-c", _RUN, str(place / "in"), str(place / "plan.json"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    generator = np.random.default_rng(1)
    killed = 0
    while killed < 20:
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.partial").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(float(generator.uniform(0, 0.05)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if (tmp_path / "out").exists():
            assert _bytes(tmp_path / "out") == _bytes(whole)
            (tmp_path / "out").rename(tmp_path / f"done {killed}")
    subprocess.run(command, env=environment, check=True)
    assert _bytes(tmp_path / "out") == _bytes(whole)


def test_another_plan_and_a_checkpoint_that_has_changed_begin_anew(longer, tmp_path, monkeypatch):
    place, whole = longer
    plan = fk.Plan.load(place / "plan.json")
    write_ = os.pwrite
    source = tmp_path / "in"
    source.mkdir()
    for path in (place / "in").iterdir():
        (source / path.name).write_bytes(path.read_bytes())

    def interrupted(by: Plan) -> None:
        calls = iter(range(40))
        monkeypatch.setattr(
            os, "pwrite", lambda *args: write_(*args) if next(calls) < 35 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fk.compact_checkpoint(source, by, tmp_path / "out", largest=1500)
        monkeypatch.undo()

    interrupted(drawn(read(source), 5))
    first = sorted(source.glob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:-4] + b"\0\0\0\0")
    interrupted(plan)
    first.write_bytes((place / "in" / first.name).read_bytes())
    fk.compact_checkpoint(source, plan, tmp_path / "out", largest=1500)
    assert _bytes(tmp_path / "out") == _bytes(whole)


def test_a_checkpoint_that_is_written_to_meanwhile_is_refused(longer, tmp_path, monkeypatch):
    place, _ = longer
    plan, copied = fk.Plan.load(place / "plan.json"), tmp_path / "in"
    shutil.copytree(place / "in", copied)
    victim = next(iter(sorted(copied.glob("*.safetensors"))))
    chunks = streaming._chunks

    def written(file, name, whole):
        yield from chunks(file, name, whole)
        os.utime(victim, ns=(1, 1))

    monkeypatch.setattr(streaming, "_chunks", written)
    with pytest.raises(fk.ArtefactError, match="was written to while it was read"):
        fk.compact_checkpoint(copied, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    fk.compact_checkpoint(copied, plan, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked for what comes next")
def test_the_disk_is_asked_for_what_comes_next(tmp_path, monkeypatch):
    """Every byte behind the first rows once, in order, before it is read."""
    place = tmp_path / "t.safetensors"
    stored = {"a": torch.randn(9, 4), "b": torch.randn(6, 5), "c": torch.tensor(1.0)}
    save_file(stored, place)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, length, how: asked.append((at, at + length, how)))
    monkeypatch.setattr("fairkern.artefacts.tensors._AHEAD", 64)
    monkeypatch.setattr("fairkern.compact.streaming._CHUNK", 32)
    with open_tensors(place) as file:
        for name in file.order:
            parts = [rows for _, rows in streaming._chunks(file, name, whole=False)]
            assert torch.equal(torch.cat(parts) if stored[name].ndim else parts[0], stored[name])
    assert {how for _, _, how in asked} == {os.POSIX_FADV_WILLNEED}
    assert all(begin == end for (_, end, _), (begin, _, _) in pairwise(asked))
    assert asked[-1][1] >= place.stat().st_size
