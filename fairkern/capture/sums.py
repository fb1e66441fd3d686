"""Taylor sums and activation sums over a pass, in float64, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.points import Block, Point
from fairkern.capture.samples import by_group
from fairkern.capture.settings import Reduction
from fairkern.ops import taylor_sums


class TaylorStore:
    """Per block the signed and per-sample Taylor sums, per point the sum of its activation.

    A batch counts only once it is committed, so that a batch that fails leaves no half.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._signed: dict[Block, Tensor] = {}
        self._per_sample: dict[Block, Tensor] = {}
        self._activation: dict[Point, Tensor] = {}
        self._elements: dict[Point, int] = {}
        self._batch: dict[Point, list[tuple[Block, Tensor, Tensor, Tensor]]] = {}
        self._activations: dict[Point, tuple[Tensor, int]] = {}

    def add(self, point: Point, act: Tensor, grad: Tensor) -> None:
        """`Σ act · ∂L/∂act` of one point for the batch under way."""
        dim = point.dim % act.ndim
        if grad.dtype != act.dtype:
            grad = grad.to(act.dtype)
        rows = []
        for block in point.blocks:
            sums = taylor_sums(block.view(act, dim), block.view(grad, dim), dim, backend=self._backend)
            rows.append((block, sums.signed, sums.per_sample, sums.activation))
        self._batch[point] = rows
        free = len(rows) == 1 and point.blocks[0].columns is None and point.blocks[0].per_unit == 1
        total = rows[0][3] if free else act.sum([d for d in range(act.ndim) if d != dim], dtype=rows[0][3].dtype)
        self._activations[point] = (total.double(), act.numel() // act.shape[dim])

    def reached(self) -> bool:
        """Whether any gradient came back in the batch under way."""
        return bool(self._batch)

    def not_finite(self, points: Iterable[Point]) -> tuple[Point, str] | None:
        """The point to blame in the batch under way, and for what; None if all sums are finite.

        An activation travels forwards, so the first bad one is to blame; a gradient backwards, so the last.
        """
        order = [p for p in points if p in self._batch]
        if not order:
            return None
        acts = torch.stack([_finite([row[3] for row in self._batch[p]]) for p in order]).tolist()
        grads = torch.stack([_finite([row[1] for row in self._batch[p]]) for p in order]).tolist()
        if not all(acts):
            return order[acts.index(False)], "activations"
        if not all(grads):
            return order[len(order) - 1 - grads[::-1].index(False)], "gradients"
        return None

    def discard(self) -> None:
        self._batch.clear()
        self._activations.clear()

    def commit(self, weight: float) -> None:
        """Add the batch under way, its gradients multiplied by `weight`."""
        for point, rows in self._batch.items():
            for block, signed, per_sample, _ in rows:
                _add(self._signed, block, signed.double() * weight)
                _add(self._per_sample, block, per_sample.double() * weight)
            total, elements = self._activations[point]
            _add(self._activation, point, total)
            self._elements[point] = self._elements.get(point, 0) + elements
        self.discard()

    def reconstruction(self, reduction: Reduction, samples: int) -> dict[int, np.ndarray]:
        """R per group, float64 `[units]`: summed over a group's taps, per sample of the data."""
        signed = {block: total.abs() for block, total in self._signed.items()}
        values = signed if reduction is Reduction.SIGNED else self._per_sample
        return by_group(((b, t.cpu().numpy() / samples) for b, t in values.items()), largest=False)

    def means(self) -> dict[str, np.ndarray]:
        """Mean activation per position, float64 `[length]`, of every point by name."""
        return {p.name: (t / self._elements[p]).cpu().numpy() for p, t in self._activation.items()}


def _finite(sums: list[Tensor]) -> Tensor:
    return torch.stack([torch.isfinite(s).all() for s in sums]).all()


def _add(into: dict[Any, Tensor], key: object, value: Tensor) -> None:
    into[key] = into[key] + value if key in into else value
