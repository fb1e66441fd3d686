"""How `class_wasserstein` and `wasserstein_1d` sort, and the launch settings of their Triton kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fairkern.ops import _tuned

NETWORKS = (4, 8, 16, 32, 64)  # samples per class that a generated sorting network takes; above, torch.sort
TRIANGLES = (4, 8, 10)  # classes whose pairs one program holds in registers
TILE = 8  # classes on a side of a tile of pairs, above
WORKSPACE = 1 << 26  # float32 numbers of sorted samples held at a time: 256 MiB
MERGE_GROUPS = 256  # partial results per unit, at most, where class sizes differ

# On a CPU, samples per class up to which a sorting network over all columns is at least as fast as a radix sort of each
# column. Measured by `python -m bench.thresholds`, in bench/results/thresholds.json.
NETWORK_LIMIT = {torch.float32: 8192, torch.float64: 8192}


def network_limit(accumulator: torch.dtype) -> int:
    """`NETWORK_LIMIT` for sums of that dtype; half precision is sorted as float32."""
    return NETWORK_LIMIT[accumulator]


@dataclass(frozen=True)
class Settings:
    """What the launcher needs to know about one call."""

    units: int  # units times projections are the lanes of a line
    projections: int
    lines: int  # lines that a sorting program takes at once, one per warp
    network: int | None  # None: torch.sort
    triangle: int | None  # None: tiles
    padded: int  # class slots in a step
    rows: int  # units' blocks (triangle) or tiles (square) per program
    split: int  # warps that share the steps of one block (triangle)
    merge_rows: int  # pairs of unequal classes per program

    @property
    def warps(self) -> int:
        return self.rows * self.split


@dataclass(frozen=True)
class Slots:
    """Order of the classes in a step: those of the most frequent size first, because they need no merging."""

    numbers: tuple[int, ...]  # class number per slot
    equal: int  # how many slots have `count` samples
    count: int
    longest: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Slots:
        count = max(Counter(counts).items(), key=lambda item: (item[1], item[0]))[0]
        numbers = sorted(range(len(counts)), key=lambda number: (counts[number] != count, number))
        return cls(tuple(numbers), counts.count(count), count, max(counts))


def settings(
    classes: int,
    projections: int,
    slots: Slots,
    device: torch.device,
    lanes: int = 32,
    network_limit: int = NETWORKS[-1],
) -> Settings:
    """`lanes` is the number of threads that run in step: 32, or 64 on AMD."""
    across = min(1 << (projections - 1).bit_length(), 8)
    steps = -(-projections // across) * slots.longest
    triangle = next((n for n in TRIANGLES if n >= slots.equal), None)
    split = 1
    while triangle is not None and split < 8 and steps >= 64 * split:
        split *= 2
    configured = Settings(
        units=lanes // across,
        projections=across,
        lines=4,
        network=next((n for n in NETWORKS if slots.longest <= n <= network_limit), None),
        triangle=triangle,
        padded=max(-(-classes // TILE) * TILE, triangle or 0),
        rows=8 if triangle is None else max(1, 4 // split),
        split=split,
        merge_rows=4,
    )
    return _tuned.chosen("class_wasserstein", "triangle" if triangle else "square", device, configured)
