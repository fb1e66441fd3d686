"""A sharded checkpoint cut by a plan against its files copied, from the page cache and not; and the memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fairkern as fk
from bench._compaction import copy, plan_for, settle, shapes, write_checkpoint
from bench._compare import Comparison, Timing, bound, compare
from bench.provenance import ROOT

AT_LEAST, BESIDE = 0.5, 200_000_000
SIZES = {"width": 2048, "inner": 5632, "layers": 4, "experts": 8, "words": 32000}
SHARD = 500_000_000


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
