"""Where sorting by a network stops paying off: `python -m bench.thresholds` writes bench/results/thresholds.json.

Two classes of n samples are compared by `class_wasserstein`, with every way to sort them in turn: the network over all
columns at once, each column by itself (native: radix), and `torch.sort` (the reference on the CPU; the route beyond
the networks on a GPU). The threshold is the largest n up to which the network is the fastest by a tenth at every n.
`fairkern/ops/wasserstein/config.py` holds the thresholds; `tests/test_thresholds.py` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench._compare import host_clock, in_turn
from bench.provenance import ROOT, write_results
from fairkern.ops.wasserstein import config, group_by_class, native, reference

RESULTS = ROOT / "bench" / "results" / "thresholds.json"
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 262144, 1_000_000)
NETWORK_MOST = 65536  # samples: beyond, a network's list of comparators alone is larger than the data
ELEMENTS = 1 << 21  # of an example, about: columns follow from it
FEWEST_COLUMNS = 16
MARGIN = 1.1
EVERYTHING = 1 << 20  # as a limit: always the network

Call = Callable[[], Tensor]


def routes_on_cpu(x: Tensor, order: Tensor, offsets: Tensor, n: int) -> dict[str, Call]:
    routes: dict[str, Call] = {
        "column": lambda: native.class_wasserstein(x, order, offsets, "max", limit=0),
        "torch.sort": lambda: reference.class_wasserstein(x, order, offsets, "max"),
    }
    if n <= NETWORK_MOST:
        routes["network"] = lambda: native.class_wasserstein(x, order, offsets, "max", limit=EVERYTHING)
    return routes


def routes_on_gpu(x: Tensor, order: Tensor, offsets: Tensor, n: int) -> dict[str, Call]:
    from fairkern.ops.wasserstein import triton_kernel

    routes: dict[str, Call] = {
        "torch.sort": lambda: triton_kernel.class_wasserstein(x, order, offsets, "max", network_limit=0)
    }
    if n <= config.NETWORKS[-1]:
        routes["network"] = lambda: triton_kernel.class_wasserstein(x, order, offsets, "max")
    return routes


def example(n: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    columns = max(FEWEST_COLUMNS, ELEMENTS // (2 * n))
    x = torch.randn(2 * n, columns, 1, dtype=dtype, generator=torch.Generator().manual_seed(n)).to(device)
    labels = torch.arange(2 * n, device=device) % 2
    return x, *group_by_class(labels, 2 * n, x.device)


def gpu_clock(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()

    def complete() -> None:
        call()
        torch.cuda.synchronize()

    return host_clock(complete)


def measured(device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    rows = []
    make = routes_on_gpu if device == "cuda" else routes_on_cpu
    clock = gpu_clock if device == "cuda" else None
    for n in COUNTS:
        x, order, offsets = example(n, dtype, device)
        routes = make(x, order, offsets, n)
        rounds = 9 if n <= 65536 else 3
        times = dict(zip(routes, in_turn(list(routes.values()), rounds, warmup=1, clock=clock), strict=True))
        seconds = {name: timing.as_dict() for name, timing in times.items()}
        row = {"device": device, "dtype": str(dtype).removeprefix("torch."), "n": n, "columns": x.shape[1]}
        rows.append({**row, "seconds": seconds})
        print(row, {name: f"{timing.p50 * 1e3:.2f} ms" for name, timing in times.items()}, file=sys.stderr)
    return rows


def threshold(rows: list[Mapping[str, Any]]) -> int:
    """The largest n up to which the network is the fastest by `MARGIN` at every n; 0 if it is not at the smallest."""
    best = 0
    for row in sorted(rows, key=lambda row: row["n"]):
        medians = {name: timing["p50"] for name, timing in row["seconds"].items()}
        network = medians.pop("network", None)
        if network is None or network * MARGIN > min(medians.values()):
            break
        best = row["n"]
    return best


def main() -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows: list[dict[str, Any]] = []
    thresholds: dict[str, dict[str, int | None]] = {"cuda": {"float32": None}}  # None: not measured
    for device in devices:
        thresholds[device] = {}
        for dtype in (torch.float32, torch.float64)[: 1 if device == "cuda" else 2]:
            new = measured(device, dtype)
            thresholds[device][str(dtype).removeprefix("torch.")] = threshold(new)
            rows += new
    write_results(RESULTS, thresholds=thresholds, rows=rows)
    print(thresholds, file=sys.stderr)


if __name__ == "__main__":
    main()
