"""What scoring takes by one, two and more processes of one thread each, on the same data.

Each row is a run of its own: the processes are started, score once to be warm and once more by the clock, and say which
units a plan removes, which has to be the same for all.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import fairkern as fk

_PATIENCE = 3600.0  # seconds


def rows(counts: Sequence[int], width: int = 512, layers: int = 4, batches: int = 16) -> list[dict[str, Any]]:
    """One for every number of processes, of a net of `layers` hidden layers of `width`, with second moments."""
    return [_row(count, width, layers, batches) for count in counts]


def _row(count: int, width: int, layers: int, batches: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (count, os.path.join(folder, "store"), width, layers, batches, answers)
        processes = [context.Process(target=_process, args=(rank, *given)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_PATIENCE)
            if process.exitcode != 0:
                raise RuntimeError(f"a process of {count} ended with {process.exitcode}")
    found = [answers.get() for _ in processes]
    if len({answer["removed"] for answer in found}) > 1:
        raise RuntimeError(f"{count} processes made different plans")
    return {"processes": count, "width": width, "layers": layers, "batches": batches, **found[0]}


def _process(rank: int, count: int, store: str, width: int, layers: int, batches: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    torch.manual_seed(0)
    hidden = [layer for _ in range(layers - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))
    data = [(torch.randn(256, 64), torch.arange(256) % 10) for _ in range(batches)]
    units = fk.trace(model, data[0][0][:2])
    for _ in range(2):
        dist.barrier()
        started = time.perf_counter()
        scores = fk.score(model, data, nn.functional.cross_entropy, units=units, gram=True, ranks=True, progress=False)
        seconds = time.perf_counter() - started
    plan = scores.plan(keep_params=0.5)
    removed = hashlib.sha256(b"".join(group.removed.tobytes() for group in plan.groups)).hexdigest()
    parts = {f"{name}_s": value for name, value in scores.provenance["seconds"].items() if name != "trace"}
    answers.put({"wall_s": seconds, **parts, "removed": removed})
    dist.destroy_process_group()
