"""Taylor sums and activation sums over a pass, in float64, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.points import Point
from fairkern.capture.samples import by_group
from fairkern.capture.settings import Reduction
from fairkern.ops import taylor_sums


@dataclass(frozen=True)
class _Heard:
    """What came back at one point in one batch: sums per unit of each block, and of the activation per position."""

    signed: list[Tensor]
    per_sample: list[Tensor]
    activation: Tensor
    elements: int  # that each activation sum adds


class TaylorStore:
    """Per block the signed and per-sample Taylor sums, per point the sum of its activation.

    A batch counts only once it is committed, so that a batch that fails leaves no half. All sums of a batch are
    added as one vector, in the order of the points.
    """

    def __init__(self, points: Sequence[Point], backend: str) -> None:
        self._points, self._backend = points, backend
        self._blocks = [block for p in points for block in p.blocks]
        self._batch: dict[Point, _Heard] = {}
        self._elements: dict[Point, int] = dict.fromkeys(points, 0)
        self._terms: Tensor | None = None  # float64: signed of all blocks, then per sample of all blocks
        self._activations: Tensor | None = None  # float64: of all points

    def add(self, point: Point, act: Tensor, grad: Tensor, dim: int) -> None:
        """`Σ act · ∂L/∂act` of one point for the batch under way; samples first, units along `dim`."""
        if grad.dtype != act.dtype:
            grad = grad.to(act.dtype)
        sums = [taylor_sums(b.view(act, dim), b.view(grad, dim), dim, backend=self._backend) for b in point.blocks]
        whole = len(sums) == 1 and point.blocks[0].columns is None and point.blocks[0].per_unit == 1
        others = [d for d in range(act.ndim) if d != dim]
        activation = sums[0].activation if whole else act.sum(others, dtype=sums[0].activation.dtype)
        self._batch[point] = _Heard(
            [s.signed for s in sums], [s.per_sample for s in sums], activation, act.numel() // act.shape[dim]
        )

    def reached(self) -> bool:
        """Whether any gradient came back in the batch under way."""
        return bool(self._batch)

    def not_finite(self) -> tuple[Point, str] | None:
        """The point to blame in the batch under way, and for what; None if all sums are finite.

        An activation travels forwards, so the first bad one is to blame; a gradient backwards, so the last.
        """
        order = [p for p in self._points if p in self._batch]
        if _finite([t for p in order for t in (self._batch[p].activation, *self._batch[p].signed)]):
            return None
        for point in order:
            if not _finite([self._batch[point].activation]):
                return point, "activations"
        return next(p for p in reversed(order) if not _finite(self._batch[p].signed)), "gradients"

    def commit(self, weight: float) -> None:
        """Add the batch under way, its gradients multiplied by `weight`."""
        signed: list[Tensor] = []
        per_sample: list[Tensor] = []
        activations: list[Tensor] = []
        device = next(iter(self._batch.values())).activation.device
        for point in self._points:
            heard = self._batch.get(point)
            if heard is None:  # no gradient came back here, and nothing was summed
                zeros = [torch.zeros(block.units, device=device) for block in point.blocks]
                heard = _Heard(zeros, zeros, torch.zeros(point.length, device=device), 0)
            signed += heard.signed
            per_sample += heard.per_sample
            activations.append(heard.activation)
            self._elements[point] += heard.elements
        terms, means = torch.cat(signed + per_sample).double() * weight, torch.cat(activations).double()
        self._terms = terms if self._terms is None else self._terms + terms
        self._activations = means if self._activations is None else self._activations + means
        self._batch.clear()

    def reconstruction(self, reduction: Reduction, samples: int) -> dict[int, np.ndarray]:
        """R per group, float64 `[units]`: summed over a group's taps, per sample of the data."""
        assert self._terms is not None
        signed, per_sample = (self._terms.cpu().numpy() / samples).reshape(2, -1)
        chosen = np.abs(signed) if reduction is Reduction.SIGNED else per_sample
        return by_group(zip(self._blocks, _split(chosen, [b.units for b in self._blocks]), strict=True), largest=False)

    def means(self) -> dict[str, np.ndarray]:
        """Mean activation per position, float64 `[length]`, of every point by name (where a gradient came back)."""
        assert self._activations is not None
        sums = _split(self._activations.cpu().numpy(), [p.length for p in self._points])
        return {
            p.name: total / self._elements[p] for p, total in zip(self._points, sums, strict=True) if self._elements[p]
        }


def _finite(sums: list[Tensor]) -> bool:
    return bool(torch.isfinite(torch.cat(sums)).all())


def _split(flat: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1])
