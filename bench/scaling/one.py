"""`python -m bench.scaling.one CASE`: one case, a JSON object of sizes; seconds by stage and the most memory, as JSON.

A process of its own, so that the peak is that of this case alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fairkern as fk
from bench._compare import in_turn
from bench._status import status
from bench.quality.nets.transformers import LanguageModel
from fairkern.ops import View, eliminate
from fairkern.ops.gram import gram

VOCABULARY = 512


def main(text: str) -> None:
    case = json.loads(text)
    kind = case.pop("kind")
    print(json.dumps({"decoder": decoder, "order": order, "classes": classes, "rates": rates}[kind](**case)))


def decoder(layers: int, width: int, tokens: int, sequence: int = 128, ranks: int = 1) -> dict[str, Any]:
    """A language model scored with second moments, beside an ordinary forward and backward of the same batches. Each of
    several processes has one thread."""
    if ranks > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    torch.manual_seed(0)
    model = LanguageModel(VOCABULARY, width=width, depth=layers, heads=8, length=sequence)
    ids = torch.randint(VOCABULARY, (tokens // sequence, sequence))
    batches = [(x, x) for x in ids.split(4)]
    units = fk.trace(model, ids[:2])
    before = status()["VmHWM"]
    started = time.perf_counter()
    scores = fk.score(model, batches, loss, units=units, class_of=False, gram=True, progress=False, ranks=ranks > 1)
    seconds = time.perf_counter() - started
    taken = status()["VmHWM"] - before
    plain = _ordinary(model, batches) if ranks == 1 else None
    if ranks > 1:
        dist.destroy_process_group()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "score_s": seconds,
        "orders_s": scores.provenance["seconds"]["residual"],
        "forward_backward_s": plain,
        "peak_bytes": taken,
    }


def order(units: int) -> dict[str, Any]:
    """All units of one layer, by what is lost with each; beside a product of two matrices of that size."""
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(2 * units, units, dtype=torch.float64, generator=generator)
    weight = torch.randn(units, units, dtype=torch.float64, generator=generator)
    view = View(read.T @ read / len(read), weight @ weight.T, torch.arange(units)[:, None])
    times = []
    for call in (lambda: view.covariance @ view.output, lambda: eliminate([view])):
        call() if units <= 1024 else None
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return {"product_s": times[0], "order_s": times[1], "peak_bytes": status()["VmHWM"]}


def classes(count: int, samples: int = 2048, width: int = 512) -> dict[str, Any]:
    """A classifier of so many classes, scored with their distances."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, count))
    x, y = torch.randn(samples, 64), torch.arange(samples) % count
    batches = list(zip(x.split(256), y.split(256), strict=True))
    scores = fk.score(model, batches, nn.functional.cross_entropy, progress=False)
    return {"score_s": scores.provenance["seconds"]["pass"], "distances_s": scores.provenance["seconds"]["wasserstein"]}


def rates(rows: int = 512, width: int = 2048, inner: int = 5632, disk: int = 2**28) -> dict[str, Any]:
    """Multiply-adds per second of a layer in each dtype, of second moments, and bytes per second of a copied file."""
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        product = partial(torch.mm, torch.randn(rows, width, dtype=dtype), torch.randn(width, inner, dtype=dtype))
        found[f"passes_{str(dtype).removeprefix('torch.')}"] = rows * width * inner / _seconds(product)
    read = torch.randn(rows, inner)
    found["moments"] = rows * inner**2 / 2 / _seconds(lambda: gram(read, 1))
    with tempfile.TemporaryDirectory() as place:
        source, copy = Path(place, "a"), Path(place, "b")
        source.write_bytes(bytes(disk))

        def copied() -> None:
            shutil.copyfile(source, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())

        found["disk"] = disk / _seconds(copied)
    return found


def _seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """The median of a few calls, after one that is not timed."""
    return in_turn([call], rounds, 1)[0].p50


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _ordinary(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    started = time.perf_counter()
    for x, y in batches:
        model.zero_grad()
        loss(model(x), y).backward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
