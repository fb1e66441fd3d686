"""Convolutional networks cut to half of every group: what is timed, what it is held against, and where time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture.joint import JointSums
from fairkern.compensate import Compensation
from fairkern.compensate.correction import Consumer
from fairkern.compensate.cut import cut
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal

KEEPS = 0.5

Ready = Callable[[], object]


def network(name: str) -> nn.Module:
    """One of torchvision's, with weights from a seed."""
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval()


def halved(model: nn.Module, x: Tensor) -> fk.Plan:
    """A plan that takes half of the units of every group, at random."""
    units = fk.trace(model, x, verify=False)
    return fk.Plan.of(build(units, random_removal(units, KEEPS, 0)))


def stepping(model: nn.Module, x: Tensor) -> Ready:
    """torch-pruning's `step()`, ready to take half of every layer but the last; `model` is cut in place."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    kept: dict[str, Any] = {"pruning_ratio": KEEPS, "ignored_layers": last}
    made = tp.pruner.BasePruner(model, x, importance=tp.importance.MagnitudeImportance(), **kept)
    return lambda: made.step()


def once_ready(make: Callable[[], Ready]) -> float:
    """Seconds of what `make` returns, called once: what it takes to make it is not counted."""
    call = make()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Spent(dict[str, float]):
    """Seconds by name, of functions that are called within."""

    @contextmanager
    def watched(self, *of: tuple[str, type, str]) -> Iterator[None]:
        """`of`: a name, a class and its method."""
        patches = [patch.object(kind, method, self._timed(name, getattr(kind, method))) for name, kind, method in of]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self[name] = self.get(name, 0.0) + time.perf_counter() - start

        return timed


def sequential(model: nn.Module, plan: fk.Plan, scores: fk.Scores, loader: Sequence[Any]) -> Spent:
    """A cut with sequential compensation: seconds in all, of its solves (factorisations, and their products with
    weights) and of its sums (second moments of what layers read in both models)."""
    spent = Spent()
    with spent.watched(("solves", Consumer, "correction"), ("sums", JointSums, "add")):
        start = time.perf_counter()
        cut(model, plan, Compensation.SEQUENTIAL, scores, loader, inplace=False)
        spent["all"] = time.perf_counter() - start
    return spent


def passes(model: nn.Module, loader: Sequence[Any]) -> float:
    """Seconds of one forward pass over the data."""
    start = time.perf_counter()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    return time.perf_counter() - start
