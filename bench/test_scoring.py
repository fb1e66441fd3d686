"""One-pass scoring against an ordinary forward + backward over the same batches, in turn, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fairkern as fk
from bench._compare import compare
from fairkern.demo.data import calibration
from fairkern.demo.models import BUILDERS

pytest.importorskip("sklearn")
MOST = {"vgg": 1.0, "resnet": None}  # scoring time over training time; None: measured, nothing promised


def forward_backward(model: nn.Module, batches: list[Any], loss_fn: nn.Module) -> None:
    """What a training epoch computes before the optimiser's step: activations, their gradients, weight gradients."""
    model.train()
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss_fn(model(x), y).backward()


@contextmanager
def one_thread() -> Iterator[None]:
    """As the demo trains: layers this small gain nothing from a second thread, and it makes times unsteady."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MOST)
def test_scoring_against_forward_backward(name: str, benchmark: Any, record: Callable[..., None]) -> None:
    model, twin = BUILDERS[name](), BUILDERS[name]()
    batches, loss_fn = calibration(), nn.CrossEntropyLoss()
    units = fk.trace(model, batches[0][0][:1])

    def ours() -> fk.Scores:
        return fk.score(model, batches, loss_fn, units=units, progress=False)

    with one_thread():
        timed = compare(ours, lambda: forward_backward(twin, batches, loss_fn), rounds=21)
    benchmark.pedantic(ours, rounds=1)
    images = sum(len(y) for _, y in batches)
    record(
        benchmark,
        timed,
        op="score",
        shape=f"demo {name}, {images} images of 8 x 8, {len(batches)} batches",
        rival="forward + backward, weight gradients included",
        threads=1,
    )
    most = MOST[name]
    if most is not None:
        assert timed.relative_cost <= most
