"""One-pass scoring against an ordinary forward + backward over the same batches, in turn, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import fairkern as fk
from bench._compare import compare
from bench._training import forward_backward, threads
from bench.models import images, resnet18
from fairkern.demo.data import Batches, calibration
from fairkern.demo.models import BUILDERS

MOST = 0.85  # scoring time over training time


@dataclass(frozen=True)
class Setting:
    build: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    threads: int
    rounds: int
    target: float | None  # None: nothing was promised


def digits() -> Batches:
    pytest.importorskip("sklearn")
    return calibration()


def large() -> Batches:
    """16 images of each of ten classes."""
    x, y = images(160, 10, 3, 128)
    return list(zip(x.split(32), y.split(32), strict=True))


CASES = {
    "vgg": Setting(BUILDERS["vgg"], digits, 1, 21, MOST),
    "resnet": Setting(BUILDERS["resnet"], digits, 1, 21, None),
    "resnet18": Setting(lambda: resnet18(10), large, torch.get_num_threads(), 5, MOST),
}
NAMES = {"vgg": "demo vgg", "resnet": "demo resnet", "resnet18": "ResNet-18"}


@pytest.mark.parametrize("name", CASES)
def test_scoring_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    setting = CASES[name]
    model, twin, batches = setting.build(), setting.build(), setting.batches()
    loss_fn = nn.CrossEntropyLoss()
    units = fk.trace(model, batches[0][0][:1])

    def ours() -> fk.Scores:
        return fk.score(model, batches, loss_fn, units=units, progress=False)

    with threads(setting.threads):
        timed = compare(ours, lambda: forward_backward(twin, batches, loss_fn), setting.rounds, warmup=1)
    benchmark.pedantic(ours, rounds=1)
    count, size = sum(len(y) for _, y in batches), batches[0][0].shape[-1]
    record(
        benchmark,
        timed,
        op="score",
        shape=f"{NAMES[name]}, {count} images of {size} x {size}, {len(batches)} batches",
        rival="forward + backward, weight gradients included",
        threads=setting.threads,
        **({} if setting.target is None else timed.bound("relative_cost", setting.target, at_least=False)),
    )
