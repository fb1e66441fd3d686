"""A sharded checkpoint cut by a plan against its files copied, from the page cache and not, and the memory it takes;
models in memory cut against `copy.deepcopy` and torch-pruning's `step()`, and what sequential compensation adds."""

from __future__ import annotations

import copy as copying
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fairkern as fk
from bench._compaction import copy, plan_for, settle, shapes, write_checkpoint
from bench._compare import Comparison, Timing, bound, compare
from bench._cutting import Ready, halved, network, once_ready, passes, sequential, stepping
from bench.models import images, resnet18
from bench.provenance import ROOT

AT_LEAST, BESIDE = 0.5, 200_000_000
SIZES = {"width": 2048, "inner": 5632, "layers": 4, "experts": 8, "words": 32000}
SHARD = 500_000_000
NETWORKS = {"vgg16_bn": 25.0, "resnet50": 10.0, "densenet121": 40.0}  # and how many times as fast as torch-pruning
OF_A_COPY = 1.5
PASSES = 2.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files of a decoder with experts, 2.3 GB, and its plan beside them."""
    place = tmp_path_factory.mktemp("compaction")
    of = shapes(**SIZES)
    write_checkpoint(place / "in", of, SHARD)
    plan_for(of).save(place / "plan.json")
    yield place
    shutil.rmtree(place)


def _clear(place: Path) -> None:
    """What an earlier call wrote."""
    for name in ("out", "copy"):
        shutil.rmtree(place / name, ignore_errors=True)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_compaction(cached: bool, checkpoint: Path, benchmark: Any, record: Callable[..., None]) -> None:
    plan, source = fk.Plan.load(checkpoint / "plan.json"), checkpoint / "in"

    def ours() -> None:
        fk.compact_checkpoint(source, plan, checkpoint / "out")

    def clock(call: Callable[[], object]) -> float:
        _clear(checkpoint)
        settle(source, cached)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    timed = compare(ours, lambda: copy(source, checkpoint / "copy"), rounds=5, warmup=0, clock=clock)
    _clear(checkpoint)
    benchmark.pedantic(ours, rounds=1)
    _clear(checkpoint)
    size = sum(path.stat().st_size for path in source.iterdir())
    record(
        benchmark,
        timed,
        op="compact",
        shape=f"{size / 1e9:.1f} GB in {len(list(source.glob('*.safetensors')))} shards",
        rival="copying the same files",
        cached=cached,
        **timed.bound("ratio", AT_LEAST, at_least=True),
    )
    assert timed.ratio >= AT_LEAST


def test_memory(checkpoint: Path, benchmark: Any, record: Callable[..., None]) -> None:
    command = [sys.executable, "-m", "bench._compaction", str(checkpoint / "in"), str(checkpoint / "plan.json")]

    def run() -> dict[str, int]:
        done = subprocess.run([*command, str(checkpoint / "out")], cwd=ROOT, capture_output=True, text=True, check=True)
        _clear(checkpoint)
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    found = benchmark.pedantic(run, rounds=1)
    largest = 2 * SIZES["words"] * SIZES["width"]
    once = Timing.of([benchmark.stats.stats.max if benchmark.stats else 1.0])
    record(
        benchmark,
        Comparison(once, once),
        op="memory",
        shape=f"{found['bytes'] / 1e9:.1f} GB, of which {largest / 1e6:.0f} MB are the largest tensor",
        rival="2 x the largest tensor + 200 MB",
        largest_bytes=largest,
        value=found["peak_bytes"] / (2 * largest + BESIDE),
        **bound(found["peak_bytes"] / (2 * largest + BESIDE), 1.0, at_least=False),
        **found,
    )
    assert found["peak_bytes"] <= 2 * largest + BESIDE


@pytest.mark.parametrize("name", NETWORKS)
def test_apply_against_deepcopy(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    pytest.importorskip("torchvision")
    model = network(name)
    plan = halved(model, torch.randn(1, 3, 64, 64))

    def ours() -> object:
        return fk.apply(model, plan)

    timed = compare(ours, lambda: copying.deepcopy(model), rounds=9)
    benchmark.pedantic(ours, rounds=1)
    record(
        benchmark,
        timed,
        op="apply",
        shape=name,
        rival="copy.deepcopy of the model",
        **timed.bound("relative_cost", OF_A_COPY, at_least=False),
    )
    assert timed.relative_cost <= OF_A_COPY


@pytest.mark.parametrize("inplace", [False, True], ids=["copied", "in place"])
@pytest.mark.parametrize("name", NETWORKS)
def test_apply_against_torch_pruning(name: str, inplace: bool, benchmark: Any, record: Callable[..., None]) -> None:
    """Its importance is the norm of weights, which is computed in `step()`; its graph is built before."""
    pytest.importorskip("torchvision")
    pytest.importorskip("torch_pruning")
    model, x = network(name), torch.randn(1, 3, 64, 64)
    plan = halved(model, x)

    def ours() -> Ready:
        given = copying.deepcopy(model)
        return lambda: fk.apply(given, plan, inplace=inplace)

    timed = compare(ours, lambda: stepping(copying.deepcopy(model), x), rounds=3, warmup=1, clock=once_ready)
    benchmark.pedantic(ours(), rounds=1)
    record(
        benchmark,
        timed,
        op="apply",
        shape=f"{name}, {'in place' if inplace else 'a copy'}",
        rival="torch-pruning 1.6.1 step()",
        **timed.bound("ratio", NETWORKS[name], at_least=True),
    )
    assert timed.ratio >= NETWORKS[name]


def test_sequential(benchmark: Any, record: Callable[..., None]) -> None:
    """What a cut with sequential compensation takes beside its solves, in forward passes over the same data."""
    model = resnet18(10).eval()
    x, y = images(256, 10, 3, 64)
    loader = list(zip(x.split(32), y.split(32), strict=True))
    loss = torch.nn.functional.cross_entropy
    scores = fk.score(model, loader, loss, gram=True, progress=False)
    plan = scores.plan(keep_params=0.5)
    sequential(model, plan, scores, loader)
    rounds = [(sequential(model, plan, scores, loader), passes(model, loader)) for _ in range(5)]
    benchmark.pedantic(lambda: passes(model, loader), rounds=1)
    beyond = Timing.of([spent["all"] - spent["solves"] for spent, _ in rounds])
    one = Timing.of([seconds for _, seconds in rounds])
    timed = Comparison(beyond, one)
    middle = {name: float(sorted(spent[name] for spent, _ in rounds)[len(rounds) // 2]) for name in rounds[0][0]}
    record(
        benchmark,
        timed,
        op="sequential",
        shape="ResNet-18, 256 x 3 x 64 x 64, without its solves",
        rival="one forward pass",
        seconds=middle,
        **timed.bound("relative_cost", PASSES, at_least=False),
    )
    assert timed.relative_cost <= PASSES
