"""An ordinary training loop, seeded, on one thread; weights are kept in a folder that git ignores."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.quality.tasks.task import Task

FOLDER = Path(__file__).resolve().parent
CACHE = FOLDER / ".cache"


@dataclass(frozen=True)
class Schedule:
    """AdamW, one learning-rate cycle."""

    epochs: int = 15
    rate: float = 3e-3
    decay: float = 0.02


def trained(name: str, build: Callable[[], nn.Module], task: Task, schedule: Schedule, seed: int) -> nn.Module:
    """The net with the weights of this seed, in eval mode; trained if the cache has none for this code."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build()
    path = CACHE / f"{name}-{seed}-{_fingerprint(schedule)}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    started = time.perf_counter()
    _train(model, task, schedule, seed)
    CACHE.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
    partial.rename(path)
    print(f"{name}, seed {seed}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval()


def _train(model: nn.Module, task: Task, schedule: Schedule, seed: int) -> None:
    assert task.epoch is not None
    generator = torch.Generator().manual_seed(seed)
    steps = sum(1 for _ in task.epoch(torch.Generator().manual_seed(seed)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.rate, total_steps=steps * schedule.epochs, pct_start=0.2
    )
    model.train()
    for _ in range(schedule.epochs):
        for inputs, targets in task.epoch(generator):
            optimizer.zero_grad()
            task.loss(model(inputs), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cycle.step()
    optimizer.zero_grad()


def _fingerprint(schedule: Schedule) -> str:
    """Of what the weights depend on: schedule, nets, tasks, this file, torch."""
    digest = hashlib.sha256(repr((asdict(schedule), torch.__version__)).encode())
    for path in sorted([Path(__file__), *FOLDER.glob("nets/*.py"), *FOLDER.glob("tasks/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
