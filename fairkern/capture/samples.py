"""Class samples for the U-score: which samples to keep, their projections, and how much memory they may take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.points import Block, Point
from fairkern.errors import InputError
from fairkern.ops import class_wasserstein, directions, project


class Selection:
    """The first `per_class` samples of every class, in the loader's order: the same for any batch size."""

    def __init__(self, per_class: int) -> None:
        self.per_class = per_class
        self.counts: Counter[int] = Counter()

    def take(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of this batch to keep and their labels, both int64 on the CPU; counts them as taken."""
        rows = []
        for row, label in enumerate(labels.tolist()):
            if self.counts[label] < self.per_class:
                self.counts[label] += 1
                rows.append(row)
        index = torch.tensor(rows, dtype=torch.int64)
        return index, labels[index]

    def check(self) -> None:
        """Raises InputError unless there are two classes with two samples each."""
        if len(self.counts) < 2:
            raise InputError(
                f"the loader yields {len(self.counts)} class{'es' if len(self.counts) != 1 else ''}; the U-score "
                "compares classes and needs two or more (pass class_of= to say which class a sample belongs to)"
            )
        label, count = min(self.counts.items(), key=lambda item: (item[1], item[0]))
        if count < 2:
            raise InputError(f"class {label} has one sample; the U-score needs two or more of every class")


class SampleStore:
    """Projected activations `[samples, units, P]` per block, chunk by chunk.

    With a budget, the block that takes most is dropped when the sum would exceed it and is named in `dropped`:
    another pass collects it.
    """

    def __init__(self, points: Iterable[Point], projections: int, seed: int, budget: int | None, backend: str) -> None:
        self._projections, self._seed, self._budget, self._backend = projections, seed, budget, backend
        self._chunks: dict[Block, list[Tensor]] = {block: [] for p in points for block in p.blocks}
        self._bytes: dict[Block, int] = dict.fromkeys(self._chunks, 0)
        self._labels: list[Tensor] = []
        self._directions: dict[tuple[int, torch.device], Tensor] = {}
        self.dropped: list[Block] = []
        self.peak = 0

    @property
    def bytes(self) -> int:
        return sum(self._bytes.values())

    def labels(self, labels: Tensor) -> None:
        self._labels.append(labels)

    def add(self, point: Point, act: Tensor, rows: Tensor) -> None:
        """The chosen rows of an activation, projected, for every block of this point."""
        if not len(rows) or not any(block in self._chunks for block in point.blocks):
            return
        chosen = act if len(rows) == len(act) else act.index_select(0, rows.to(act.device))
        for block in point.blocks:
            if block in self._chunks:
                self._keep(point, block, self._projected(block, block.view(chosen, point.dim), point.dim % act.ndim))

    def _projected(self, block: Block, x: Tensor, dim: int) -> Tensor:
        x = x.movedim(dim, 1)
        positions = x.shape[2:].numel()
        if positions == 1:
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            return x.reshape(len(x), block.units, 1).to(wide, copy=True)
        key = (positions, x.device)
        if key not in self._directions:
            self._directions[key] = directions(positions, self._projections, self._seed).to(x.device)
        return project(x, self._directions[key], backend="auto")

    def _keep(self, point: Point, block: Block, values: Tensor) -> None:
        chunks = self._chunks[block]
        if chunks and chunks[0].shape[2] != values.shape[2]:
            raise InputError(f"the activation at {point.name} holds another number of positions in another batch")
        chunks.append(values)
        self._bytes[block] += values.nbytes
        while self._budget is not None and self.bytes > self._budget:
            largest = max(self._bytes, key=lambda b: self._bytes[b])
            if len(self._bytes) == 1:
                raise InputError(
                    f"memory_budget is {self._budget} bytes; the samples of {point.name} alone take more. "
                    "Give a larger budget, fewer samples_per_class or fewer projections"
                )
            del self._chunks[largest], self._bytes[largest]
            self.dropped.append(largest)
        self.peak = max(self.peak, self.bytes)

    def utilization(self, backend: str) -> dict[Block, np.ndarray]:
        """U per unit, float64 `[units]`, of every block that was kept; frees the samples as it goes."""
        labels = torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.int64)
        scores = {}
        for block in list(self._chunks):
            values = torch.cat(self._chunks.pop(block))
            del self._bytes[block]
            distance = class_wasserstein(values, labels.to(values.device), reduce="max", backend=backend)
            scores[block] = distance.double().cpu().numpy()
            del values
        return scores


def by_group(scores: Iterable[tuple[Block, np.ndarray]], *, largest: bool) -> dict[int, np.ndarray]:
    """Block scores per group; over several taps of a group the largest or the sum."""
    parts: dict[int, list[np.ndarray]] = defaultdict(list)
    for block, values in scores:
        for group, places in block.members:
            parts[group].append(values[places])
    return {g: np.max(p, axis=0) if largest else np.sum(p, axis=0) for g, p in parts.items()}
