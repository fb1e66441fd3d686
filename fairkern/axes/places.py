"""Every tracked position of every parameter and buffer, axis by axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fairkern.axes.solver import Solver
from fairkern.axes.tracing import Tracing
from fairkern.types import Axis, FrozenAxis


@dataclass(frozen=True, eq=False)
class Places:
    """Per axis: its nodes, and the component of each."""

    axes: list[Axis]
    nodes: list[np.ndarray]
    components: list[np.ndarray]

    @classmethod
    def of(cls, tracing: Tracing, labels: np.ndarray) -> Places:
        """`labels`: per node, its component."""
        held = [
            (Axis(name, i), ids)
            for name, dims in tracing.tensors.items()
            for i, ids in enumerate(dims)
            if ids is not None
        ]
        return cls([axis for axis, _ in held], [ids for _, ids in held], [labels[ids] for _, ids in held])

    def frozen(self, solver: Solver) -> Iterator[FrozenAxis]:
        """How many positions of an axis stay, for each axis and reason."""
        for axis, components in zip(self.axes, self.components, strict=True):
            counts = np.bincount(solver.component_reason[components] + 1)  # in front those that are free
            for code in np.flatnonzero(counts[1:]).tolist():
                yield FrozenAxis(axis, int(counts[code + 1]), len(components), solver.reasons[code])
