"""Every tracked position of every parameter and buffer, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fairkern.axes.solver import FREE, Solver
from fairkern.axes.tracing import Tracing
from fairkern.types import Axis, FrozenAxis


@dataclass(frozen=True, eq=False)
class Places:
    """Per place: which axis, where on it, which component."""

    axes: list[Axis]
    nodes: list[np.ndarray]  # per axis
    axis: np.ndarray  # index into `axes`
    position: np.ndarray
    component: np.ndarray

    @classmethod
    def of(cls, tracing: Tracing, labels: np.ndarray) -> Places:
        """`labels`: per node, its component."""
        axes, nodes = [], []
        for name, dims in tracing.tensors.items():
            for i, ids in enumerate(dims):
                if ids is not None:
                    axes.append(Axis(name, i))
                    nodes.append(ids)
        lengths = [len(n) for n in nodes]
        flat = np.concatenate(nodes) if nodes else np.empty(0, dtype=np.int64)
        axis = np.repeat(np.arange(len(axes)), lengths)
        position = np.concatenate([np.arange(n) for n in lengths]) if nodes else flat
        return cls(axes, nodes, axis, position, labels[flat])

    def frozen(self, solver: Solver) -> Iterator[FrozenAxis]:
        """How many positions of an axis stay, for each axis and reason."""
        codes = solver.component_reason[self.component]
        hit = np.flatnonzero(codes != FREE)
        axis, code = self.axis[hit], codes[hit]
        begins = np.flatnonzero(np.diff(axis, prepend=-1).astype(bool) | np.diff(code, prepend=FREE).astype(bool))
        stretches = np.diff(begins, append=len(hit))
        pairs, which = np.unique(np.stack([axis[begins], code[begins]], axis=1), axis=0, return_inverse=True)
        counts = np.bincount(which.reshape(-1), weights=stretches).astype(np.int64)
        for (a, c), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            yield FrozenAxis(self.axes[a], count, len(self.nodes[a]), solver.reasons[c])
