"""`python -m bench.gpu.tune`: launch settings beside the configured ones, on the device; better ones into the table.

It writes `fairkern/ops/tuned.json` (or `--out`) after every situation that is done: this device's architecture anew,
others as they were. A setting is taken where it gives what the configured one gives, spills no register and is faster
by more than `MARGIN`; where none is, the table has nothing to say. `--rehearse`: on the CPU, small, and worth nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from bench.gpu.cases import Bench
from bench.gpu.machine import Call, Cuda, StandIn
from bench.gpu.warm import warm
from bench.gpu.workloads import FULL, TINY, noise
from bench.provenance import provenance, write_results
from bench.triton_compiled import Launch, recorded
from fairkern import ops
from fairkern.ops import _tuned

MARGIN = 1.03  # times as fast, at least
ROUNDS = 10
TOLERANCE = 1e-3  # sums in another order, relative to the largest; what tests of the operators allow is their matter

Fields = Mapping[str, int]


@dataclass(frozen=True)
class Search:
    """One kernel in one situation: what is tried, and a call that is in that situation."""

    kernel: str
    situation: str
    tried: Sequence[Fields]
    call: Callable[[Bench], Call]

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.situation}"

    def settings(self, fields: Fields) -> _tuned.Settings:
        return {self.kernel: {self.situation: fields}} if fields else {}


def _grid(**values: Sequence[int]) -> Iterator[dict[str, int]]:
    for chosen in product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _taylor(shape: Callable[[Bench], tuple[int, ...]], last: bool = False) -> Callable[[Bench], Call]:
    def made(bench: Bench) -> Call:
        act, grad = (noise([shape(bench)], torch.bfloat16, bench.machine.device, seed, last)[0] for seed in (0, 1))
        return lambda: ops.taylor_many([(act, grad, 1)], backend="triton")

    return made


def _square(side: int) -> Callable[[Bench], tuple[int, ...]]:
    """Activations of so many positions, of as many elements as a large layer's."""

    def shape(bench: Bench) -> tuple[int, ...]:
        scale = bench.scale
        return scale.batch, max(8, scale.units * 49 // (side * side)), side, side

    return shape


def _project(bench: Bench) -> Call:
    scale, device = bench.scale, bench.machine.device
    side = scale.image // 8
    (x,) = noise([(scale.batch, max(64, 8 * scale.width), side, side)], torch.bfloat16, device, seed=0)
    onto = ops.directions(side * side, max(64, scale.projections), seed=0).to(device)
    return lambda: ops.project(x, onto, backend="triton")


def _gram(channels: Callable[[Bench], int]) -> Callable[[Bench], Call]:
    def made(bench: Bench) -> Call:
        shape = (bench.scale.sequences * bench.scale.tokens, channels(bench))
        (x,) = noise([shape], torch.bfloat16, bench.machine.device, seed=0)
        return lambda: ops.gram(x, backend="triton")

    return made


def _gather(columns: int) -> Callable[[Bench], Call]:
    """Half of the rows; a row is so many runs of 8 bytes."""

    def made(bench: Bench) -> Call:
        rows = max(8, bench.scale.copy_bytes // (64 * columns))
        (x,) = noise([(rows, 4 * columns)], torch.bfloat16, bench.machine.device, seed=0)
        kept = torch.arange(0, rows, 2, device=bench.machine.device)
        return lambda: ops.gather(x, {0: kept}, backend="triton")

    return made


def _wasserstein(classes: int) -> Callable[[Bench], Call]:
    def made(bench: Bench) -> Call:
        scale, device = bench.scale, bench.machine.device
        (x,) = noise([(classes * scale.per_class, scale.units, scale.projections)], torch.float32, device, seed=0)
        labels = (torch.arange(len(x)) % classes).to(device)
        return lambda: ops.class_wasserstein(x, labels, backend="triton")

    return made


TAYLOR = [
    {**tile, "warps": warps}
    for tile in (
        {"channels": 1, "positions": 512},
        {"channels": 1, "positions": 2048},
        {"channels": 8, "positions": 64},
        {"channels": 8, "positions": 256},
        {"channels": 16, "positions": 64},
        {"channels": 32, "positions": 16},
        {"channels": 32, "positions": 64},
        {"channels": 64, "positions": 16},
        {"channels": 64, "positions": 32},
        {"channels": 128, "positions": 16},
        {"channels": 256, "positions": 4},
        {"channels": 256, "positions": 8},
    )
    for warps in (4, 8)
]
SEARCHES: Sequence[Search] = (
    Search("taylor", "channels innermost", TAYLOR, _taylor(_square(28), last=True)),
    Search("taylor", "many positions", TAYLOR, _taylor(_square(56))),
    Search("taylor", "some positions", TAYLOR, _taylor(_square(14))),
    Search("taylor", "few positions", TAYLOR, _taylor(_square(5))),
    Search("project", "64 × 64", list(_grid(channels=(32, 64, 128), positions=(16, 32, 64), warps=(4, 8))), _project),
    Search(
        "gram",
        "many channels",
        list(_grid(channels=(64, 128), positions=(16, 32, 64), warps=(4, 8))),
        _gram(lambda bench: max(64, bench.scale.hidden)),
    ),
    Search(
        "gram", "few channels", list(_grid(channels=(32,), positions=(32, 64), warps=(2, 4, 8))), _gram(lambda _: 32)
    ),
    Search("gather", "1024 elements", list(_grid(elements=(512, 1024, 2048), warps=(2, 4, 8))), _gather(1024)),
    Search("class_wasserstein", "square", list(_grid(lines=(2, 4, 8), rows=(4, 8))), _wasserstein(40)),
    Search("class_wasserstein", "triangle", list(_grid(lines=(2, 4, 8))), _wasserstein(10)),
)


@dataclass(frozen=True)
class Found:
    """What was tried: times by settings (the configured ones are {}), why others were not timed, and the best."""

    best: Fields
    rows: Sequence[Mapping[str, Any]]


def launches(searches: Sequence[Search], bench: Bench) -> list[tuple[str, Fields, Launch]]:
    """What every setting of every search would launch, nothing of it started."""
    found = []
    for wanted in searches:
        call = wanted.call(bench)
        for fields in wanted.tried:
            with _tuned.using(wanted.settings(fields)), recorded(wanted.name) as seen:
                call()
            found += [(wanted.name, fields, launch) for launch in seen]
    return found


def refused(searches: Sequence[Search], bench: Bench, capability: int, processes: int) -> dict[tuple[str, str], str]:
    """By search and settings: why they are not tried. Everything else lies in Triton's cache then."""
    asked = launches(searches, bench)
    made = warm([launch for *_, launch in asked], capability, processes)
    why = {}
    for (name, fields, _), (_, took) in zip(asked, made, strict=True):
        if isinstance(took, str):
            why[name, str(fields)] = took
        elif took.spill_bytes:
            why[name, str(fields)] = f"spills {took.spill_bytes} bytes"
    return why


def search(wanted: Search, bench: Bench, why_not: Mapping[tuple[str, str], str]) -> Found:
    call = wanted.call(bench)
    expected = call()
    rows: list[dict[str, Any]] = [{"fields": {}}]
    for fields in wanted.tried:
        row: dict[str, Any] = {"fields": dict(fields)}
        why = why_not.get((wanted.name, str(fields))) or _differs(_under(wanted.settings(fields), call), expected)
        rows.append({**row, "refused": why} if why else row)
    timed = [row for row in rows if "refused" not in row]
    calls = [_under(wanted.settings(row["fields"]), call) for row in timed]
    times = bench.machine.times(*calls, rounds=min(ROUNDS, bench.scale.rounds), warmup=1)
    for row, timing in zip(timed, times, strict=True):
        row["seconds"] = timing.as_dict()
    fastest = min(timed, key=lambda row: row["seconds"]["p50"])
    better = times[0].p50 >= MARGIN * fastest["seconds"]["p50"]
    return Found(fastest["fields"] if better else {}, rows)


def _differs(call: Call, expected: object) -> str:
    """What is wrong with a call's result; "" if nothing is."""
    pairs = zip(_tensors(call()), _tensors(expected), strict=True)
    apart = max(_apart(one, other) for one, other in pairs)
    return "" if apart <= TOLERANCE else f"gives something else, by {apart:.1e} of the largest"


def _tensors(found: object) -> list[Tensor]:
    """Those in a result, the fields of sums one by one."""
    if isinstance(found, Tensor):
        return [found]
    parts = found if isinstance(found, (list, tuple)) else vars(found).values() if is_dataclass(found) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _apart(one: Tensor, other: Tensor) -> float:
    apart = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30)
    return float(apart) if bool(apart.isfinite()) else float("inf")


def _under(settings: _tuned.Settings, call: Call) -> Call:
    def under() -> object:
        with _tuned.using(settings):
            return call()

    return under


def written(
    path: Path, name: str, made: Mapping[str, Any], settings: _tuned.Settings, tried: Mapping[str, Any]
) -> None:
    """The table with this architecture's entry; `tried`, what it was chosen from, is part of it."""
    entry = {"made": dict(made), "settings": settings, "tried": tried}
    write_results(path, schema=_tuned.SCHEMA, source={}, architectures={**_tuned.table(), name: entry})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune")
    parser.add_argument("--out", type=Path, default=_tuned.PATH, help="default: the table that kernels read")
    parser.add_argument("--until", type=float, help="situations begin before this second (Unix)")
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args(words)
    if given.rehearse and given.out == _tuned.PATH:
        parser.error("--rehearse measures nothing: say where its file goes, with --out")
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    bench = Bench(StandIn(), TINY) if given.rehearse else Bench(Cuda(), FULL)
    name = "rehearsed" if given.rehearse else _tuned.architecture(bench.machine.device)
    searches = [replace(wanted, tried=wanted.tried[:2]) for wanted in SEARCHES] if given.rehearse else SEARCHES
    why_not: dict[tuple[str, str], str] = {}
    if not given.rehearse:
        capability = int(name.removeprefix("sm_"))
        why_not = refused(searches, bench, capability, max(1, len(os.sched_getaffinity(0)) - 2))
        print(f"not tried: {len(why_not)}", flush=True)
    kept = ("commit", "date", "torch")
    source = provenance()
    made = {"device": bench.machine.facts()["name"], **{key: source[key] for key in kept}, "triton": triton.__version__}
    settings: dict[str, dict[str, Fields]] = {}
    tried: dict[str, Any] = {}
    for wanted in searches:
        if given.until is not None and time.time() > given.until:
            print(f"{wanted.name}: no time is left")
            continue
        found = search(wanted, bench, why_not)
        if found.best:
            settings.setdefault(wanted.kernel, {})[wanted.situation] = found.best
        tried[wanted.name] = found.rows
        written(given.out, name, made, settings, tried)
        print(f"{wanted.name}: {found.best or 'as configured'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
