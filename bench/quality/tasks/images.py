"""Grey images of 16 × 16, turned, scaled, moved and noised; what digits and glyphs have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.quality.tasks.task import Batch, Task, accuracy

SIZE = 16
BATCH = 64


@dataclass(frozen=True)
class Jitter:
    """Ranges, each drawn evenly per image: degrees, factor, pixels; and the noise's standard deviation."""

    rotation: float
    scale: float
    shift: float
    noise: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x`: [N, 1, SIZE, SIZE] in −1 … 1, background −1."""
        n = len(x)
        turn, grow, right, down = torch.rand((4, n), generator=generator) * 2 - 1
        angle, factor = turn * math.radians(self.rotation), 1 + grow * self.scale
        cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
        shift = 2 * self.shift / SIZE
        rows = [cos, -sin, right * shift, sin, cos, down * shift]
        grid = nn.functional.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 1, SIZE, SIZE], align_corners=False)
        moved = nn.functional.grid_sample(x + 1, grid, align_corners=False) - 1
        return moved + self.noise * torch.randn(moved.shape, generator=generator)


def image_task(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], jitter: Jitter, calibration: int
) -> Task:
    """A task of classification from clean images; test and calibration images are jittered once, by fixed seeds."""
    fixed = torch.Generator().manual_seed(0)
    test_batches = batches(jitter(test[0], fixed), test[1], 256)
    picked = torch.randperm(len(train[0]), generator=fixed)[:calibration]
    seen = batches(jitter(train[0][picked], fixed), train[1][picked], BATCH)

    def epoch(generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(train[0]), generator=generator)
        for part in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield jitter(train[0][part], generator), train[1][part]

    return Task(name, "accuracy", seen, nn.functional.cross_entropy, lambda m: accuracy(m, test_batches), epoch)


def batches(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    return list(zip(x.split(size), y.split(size), strict=True))
