"""What two processes or more do with models in shards, against one that holds them whole: each asserts by itself."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

import fairkern as fk
from fairkern.plans.build import build
from fairkern.ranks.digests import digest
from fairkern.results import Plan
from tests.ranks.sharded import KINDS, batches, labels, local, loss, message, plan, same, scores, sharded, units

CASES: list[str] = []
THREE: list[str] = []  # those that three processes run as well, of which some have no part of what is short


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES.append(function.__name__)
    return function


def run(_: Any, name: str) -> str:
    """One of them, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        globals()[name]()
    return "done"


def three(function: Callable[[], None]) -> Callable[[], None]:
    THREE.append(function.__name__)
    return case(function)


def _applied(kind: str) -> None:
    model, planned = sharded(kind), plan(kind)
    small = fk.apply(model, planned)
    other = fk.apply(KINDS[kind].make(), planned)
    same(small, other)
    same(model, KINDS[kind].make())  # as it was
    x = KINDS[kind].inputs(7)
    with torch.no_grad():
        assert torch.equal(small(x), other(x))


@three
def apply_layers() -> None:
    _applied("layers")


@case
def apply_depth() -> None:
    assert len(plan("depth").lists) == 1  # a block goes whole, and those behind it have other names
    _applied("depth")


@case
def apply_convolutions() -> None:
    _applied("convolutions")


@three
def apply_fused_experts() -> None:
    _applied("fused experts")


@case
def apply_listed_experts() -> None:
    _applied("listed experts")


@case
def apply_function() -> None:
    _applied("a function")


@case
def apply_shared() -> None:
    _applied("shared")
    small = fk.apply(sharded("shared"), plan("shared"))
    assert small.head.weight is small.embedding.weight
    assert not small.places.requires_grad
    small(KINDS["shared"].inputs(0)).square().mean().backward()
    assert small.head.weight is small.embedding.weight


@case
def training_goes_on() -> None:
    small, x = fk.apply(sharded("layers"), plan("layers")), KINDS["layers"].inputs(7)
    other = fk.apply(KINDS["layers"].make(), plan("layers"))
    for model in (small, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
    for (name, mine), theirs in zip(small.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.full_tensor(), theirs, msg=name)  # type: ignore[attr-defined]


def _masked(kind: str) -> None:
    model, plain, x = sharded(kind), KINDS[kind].make(), KINDS[kind].inputs(7)
    with torch.no_grad():
        with plan(kind).masked(plain):
            expected = plain(x)
        model(x)  # leaves the outermost parameters whole
        with plan(kind).masked(model):
            assert torch.equal(model(x), expected)
            with plan(kind).masked(model):
                assert torch.equal(model(x), expected)
            assert torch.equal(model(x), expected)
        assert torch.equal(model(x), plain(x))
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(whole, plain.state_dict()[name]), name


@case
def mask_layers() -> None:
    _masked("layers")


@case
def mask_depth() -> None:
    _masked("depth")


@three
def mask_fused_experts() -> None:
    _masked("fused experts")


@case
def mask_listed_experts() -> None:
    _masked("listed experts")


@case
def mask_of_a_cut_model_that_has_not_run() -> None:
    """What is padded in its first pass has to be put back where it lies then."""
    small = fk.apply(sharded("layers"), plan("layers"))
    other = fk.apply(KINDS["layers"].make(), plan("layers"))
    units = fk.trace(other, KINDS["layers"].inputs(0)[:2])
    neurons = [g for g in units.prunable if units.groups[g].kind == "neuron"]
    gone = [np.arange(3) if g in neurons else np.zeros(0, np.int64) for g in range(len(units.groups))]
    again = Plan.of(build(units, gone))
    with again.masked(small), torch.no_grad():
        small(KINDS["layers"].inputs(7))
    same(small, other)


@case
def each_call_of_fully_shard_is_made_again() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("copies", "shards"))
    for options in ({}, {"reshard_after_forward": False}, {"mp_policy": policy}, {"mesh": mesh}):
        small = fk.apply(sharded("layers", **options), plan("layers"))
        other = fk.apply(KINDS["layers"].make(), plan("layers"))
        again = sharded("layers", other, **options)  # as somebody would who shards what is left
        x = KINDS["layers"].inputs(7)
        for step in (1, 2):
            out = small(x)
            assert torch.equal(out, again(x)), (options, step)
            whole = [(type(p), type(q)) for p, q in zip(small.parameters(), again.parameters(), strict=True)]
            assert all(mine is theirs for mine, theirs in whole), (options, step)
            out.square().mean().backward()
            again(x).square().mean().backward()
        for mine, theirs in zip(small.parameters(), again.parameters(), strict=True):
            assert mine.placements == theirs.placements  # type: ignore[attr-defined]
            assert mine.device_mesh == theirs.device_mesh  # type: ignore[attr-defined]


def _along(parameter: nn.Parameter) -> Shard:
    """Dimension 1 where that divides."""
    return Shard(1 if parameter.ndim == 2 and parameter.shape[1] % dist.get_world_size() == 0 else 0)


@three
def shards_along_another_dimension() -> None:
    gone = [np.arange(6 if g.kind == "neuron" else 0) for g in units("layers").groups]
    planned = Plan.of(build(units("layers"), gone))
    small = fk.apply(sharded("layers", shard_placement_fn=_along), planned)
    same(small, fk.apply(KINDS["layers"].make(), planned))
    assert any(p.placements == (Shard(1),) for p in small.parameters())  # type: ignore[attr-defined]


@case
def what_does_not_divide_is_refused() -> None:
    size = dist.get_world_size()
    model = sharded("layers", shard_placement_fn=lambda p: Shard(1 if p.shape[1:] == (12,) and 12 % size == 0 else 0))
    gone = [np.arange(11 - size if g.kind == "neuron" else 0) for g in units("layers").groups]
    planned = Plan.of(build(units("layers"), gone))
    said = message(lambda: fk.apply(model, planned))
    assert f"down.weight keeps {size + 1} of 12 positions of dimension 1" in said, said
    assert f"round_to={size}" in said, said


@case
def another_plan_on_one_process_is_refused() -> None:
    mine = plan("layers") if dist.get_rank() else scores("layers").plan(keep_params=0.9)
    for call in (lambda: fk.apply(sharded("layers"), mine), lambda: mine.masked(sharded("layers")).__enter__()):
        said = message(call)
        assert "the plan of rank" in said, said
        assert "is not that of rank 0" in said, said


@case
def in_place_is_refused() -> None:
    assert "leave inplace=True out" in message(lambda: fk.apply(sharded("layers"), plan("layers"), inplace=True))


@three
def saved_as_one_process_saves_it() -> None:
    folder, other = (
        Path(tempfile.gettempdir()) / f"fairkern-{os.getppid()}-{dist.get_world_size()}-{what}"
        for what in ("shards", "whole")
    )
    small = fk.apply(sharded("a function"), plan("a function"))
    small(KINDS["a function"].inputs(7))
    fk.save_pruned(small, plan("a function"), folder)
    if dist.get_rank() == 0:
        fk.save_pruned(fk.apply(KINDS["a function"].make(), plan("a function")), plan("a function"), other)
        for name in ("model.safetensors", "plan.json"):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
        shutil.rmtree(folder)
        shutil.rmtree(other)


@case
def what_the_first_process_cannot_write_reaches_all() -> None:
    small = fk.apply(sharded("layers"), plan("layers"))
    with pytest.raises(OSError if dist.get_rank() == 0 else fk.RankError, match="/dev/null"):
        fk.save_pruned(small, plan("layers"), "/dev/null/at/all")


@three
def compensated_in_one_shot() -> None:
    for kind in ("layers", "convolutions", "fused experts"):
        for method in ("mean", "least_squares"):
            if (kind, method) == ("fused experts", "mean"):
                continue  # nothing there has a bias
            given = {"compensate": method, "scores": scores(kind), "biases": False}
            same(fk.apply(sharded(kind), plan(kind), **given), fk.apply(KINDS[kind].make(), plan(kind), **given))


@case
def other_compensation_is_refused() -> None:
    given = {"scores": scores("layers"), "loader": [KINDS["layers"].inputs(0)], "ranks": True}
    for method in ("sequential", "joint"):
        said = message(lambda: fk.apply(sharded("layers"), plan("layers"), compensate=method, **given))  # noqa: B023
        assert "use compensate='least_squares'" in said, said


@case
def traced_without_a_proof() -> None:
    assert "has no values" in message(lambda: fk.trace(sharded("layers"), KINDS["layers"].inputs(0)))
    found = fk.trace(sharded("layers"), KINDS["layers"].inputs(0)[:2], verify=False)
    expected = fk.trace(KINDS["layers"].make(), KINDS["layers"].inputs(0)[:2], verify=False)
    assert (found.model, found.shapes, found.prunable) == (expected.model, expected.shapes, expected.prunable)
    assert [g.name for g in found.groups] == [g.name for g in expected.groups]


def _scored(kind: str, count: int, **options: Any) -> None:
    given = {"units": units(kind), "gram": True, "progress": False, "class_of": labels, **options}
    data = batches(kind, count)
    expected = fk.score(KINDS[kind].make(), data, loss, ranks=False, **given)
    model = sharded(kind)
    before = {name: local(value) for name, value in model.named_parameters()}
    found = fk.score(model, data, loss, ranks=True, **given)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(local(after[name]), value) for name, value in before.items())
    same(model, KINDS[kind].make())
    for name, values in expected.signals.items():
        for mine, theirs in zip(found.signals[name], values, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-12, err_msg=name)
    for name, moments in expected.moments.items():
        torch.testing.assert_close(found.moments[name].gram, moments.gram)
        assert found.moments[name].count == moments.count
    if "memory_budget" in options:
        assert found.provenance["passes"] > 1, found.provenance["passes"]
    for keep in (0.9, 0.7, 0.5):
        assert digest(found.plan(keep_params=keep).axes) == digest(expected.plan(keep_params=keep).axes)


@three
def scored_layers() -> None:
    _scored("layers", 4)


@three
def scored_with_fewer_batches_than_processes() -> None:
    _scored("layers", 1)


@case
def scored_with_batches_left_over() -> None:
    for count in (2, 5):
        _scored("convolutions", count)


@case
def scored_in_several_passes() -> None:
    _scored("convolutions", 5, memory_budget=62_000)


@case
def scored_branches() -> None:
    _scored("depth", 3)


@case
def scored_fused_experts() -> None:
    _scored("fused experts", 3)


@case
def scored_listed_experts() -> None:
    _scored("listed experts", 3)


@case
def scored_at_a_function() -> None:
    _scored("a function", 3)


@case
def scored_batches_of_many_sizes() -> None:
    """A sample alone, none at all, and where samples lie in a way that has to be looked for."""
    x, y = batches("layers", 1)[0]
    data = [(x[:k], y[:k]) for k in (6, 1, 0, 5, 6)]
    given = {"units": units("layers"), "progress": False, "class_of": labels}
    expected = fk.score(KINDS["layers"].make(), data, loss, ranks=False, **given)
    found = fk.score(sharded("layers"), data, loss, ranks=True, **given)
    for mine, theirs in zip(found.signals["taylor"], expected.signals["taylor"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-12)


@case
def scored_by_one_of_several_is_refused() -> None:
    given = {"units": units("layers"), "progress": False, "class_of": labels}
    said = message(lambda: fk.score(sharded("layers"), batches("layers"), loss, ranks=False, **given))
    assert f"lies in shards in {dist.get_world_size()} processes" in said, said
    assert "ranks=True" in said, said


_LIBC: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_GLIBC = hasattr(_LIBC, "mallopt") and hasattr(_LIBC, "malloc_trim")
_MMAP_THRESHOLD = -3  # glibc's malloc.h


def _peak(what: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and by how many bytes the process was larger meanwhile than before."""
    gc.collect()  # sharded modules go round in circles
    _LIBC.malloc_trim(0)  # nor is what cases before this one have freed used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _of_status("VmRSS")
    made = what()
    return made, _of_status("VmHWM") - before


def _of_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@case
def a_cut_takes_its_part_and_little_more() -> None:
    if not Path("/proc/self/clear_refs").exists() or not _GLIBC:
        return
    _LIBC.mallopt(_MMAP_THRESHOLD, 2**16)  # what is freed goes back at once; else what went before decides
    width, layers = 1024, 24
    model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width, bias=False), nn.ReLU())))
    traced = fk.trace(model.to("meta"), torch.empty(2, width, device="meta"), verify=False)
    planned = Plan.of(build(traced, [np.arange(0, g.units, 2) for g in traced.groups]))
    for module in model[::2]:
        fully_shard(module)
    fully_shard(model)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    largest = 4 * width * width
    fk.apply(model, planned)  # what is imported and connected once
    small, added = _peak(lambda: fk.apply(model, planned))
    own = sum(4 * local(p).numel() for p in small.parameters())
    assert own < 5 * largest, own
    assert 0.9 * own < added < own + largest + 4 * 2**20, (added, own, largest)  # the whole is 24 times the largest
    assert all(bool((local(p) == 1).all()) for p in small.parameters())


@case
def statistics_are_taken_anew() -> None:
    model, plain = sharded("convolutions"), KINDS["convolutions"].make()
    data = batches("convolutions", 3)
    assert fk.recalibrate(model, data, ranks=True) == fk.recalibrate(plain, data, ranks=False) > 0
    same(model, plain)


@case
def a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model, x = sharded("layers"), KINDS["layers"].inputs(7)

    def fails(output: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("no loss")

    given = {"units": units("layers"), "progress": False, "class_of": labels, "ranks": True}
    with pytest.raises((ValueError, fk.RankError), match="no loss"):
        fk.score(model, batches("layers", 2), fails, **given)
    same(model, KINDS["layers"].make())
    assert torch.equal(model(x), KINDS["layers"].make()(x))


@case
def as_a_checkpoint_of_torch() -> None:
    """What is left is a model of fully_shard like any other: its state goes through torch.distributed.checkpoint."""
    folder = Path(tempfile.gettempdir()) / f"fairkern-{os.getppid()}-{dist.get_world_size()}-dcp"
    small = fk.apply(sharded("layers"), plan("layers"))
    checkpoint.save(small.state_dict(), checkpoint_id=folder)
    meta = fk.apply(KINDS["layers"].make().to("meta"), plan("layers"))
    again = sharded("layers", meta)
    again.to_empty(device="cpu")
    state = again.state_dict()
    checkpoint.load(state, checkpoint_id=folder)
    again.load_state_dict(state)
    same(again, fk.apply(KINDS["layers"].make(), plan("layers")))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)


@three
def loaded_as_it_was_saved() -> None:
    for kind in ("a function", "depth", "fused experts", "shared"):
        folder = Path(tempfile.gettempdir()) / f"fairkern-{os.getppid()}-{dist.get_world_size()}-load"
        small = fk.apply(sharded(kind), plan(kind))
        fk.save_pruned(small, plan(kind), folder)
        fresh = sharded(kind)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        again = fk.load_pruned(fresh, folder)
        same(again, fk.apply(KINDS[kind].make(), plan(kind)))
        assert torch.equal(again(KINDS[kind].inputs(7)), small(KINDS[kind].inputs(7)))
        if kind != "shared":  # which to() takes apart
            bare = sharded(kind, KINDS[kind].make().to("meta"))
            same(fk.load_pruned(bare, folder), fk.apply(KINDS[kind].make(), plan(kind)))
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder)
        dist.barrier()


@case
def what_takes_the_time_is_refused() -> None:
    model, x = sharded("layers"), KINDS["layers"].inputs(0)
    assert "then score(…, units=…, ranks=True), plan and apply" in message(
        lambda: fk.prune(model, batches("layers", 3), loss, ranks=True, keep_params=0.7)
    )
    assert "time it before that" in message(lambda: fk.latency_table(model, units("layers"), x, ranks=False))
