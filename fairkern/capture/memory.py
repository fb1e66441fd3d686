"""How many bytes a scoring pass is going to take, from what it listens to and what it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairkern.capture.points import Point
from fairkern.capture.settings import Settings


@dataclass(frozen=True)
class Prediction:
    """Made of the first batch's activations, before any sample is kept. Bytes.

    `per_sample`: a sample that has a class, of every unit the lesser of its positions and the projections.
    `layer`: the largest activation and its gradient, which one layer's sums may copy.
    `moments`: second moments, where they are asked for.
    """

    per_sample: int
    layer: int
    moments: int

    @classmethod
    def of(cls, heard: Iterable[tuple[Point, Tensor, int]], settings: Settings, moments: int) -> Prediction:
        """`heard`: a point, its activation with what has a class first, and where the units' dimension is then."""
        per_sample = layer = 0
        for point, act, dim in heard:
            projected = settings.projections * (8 if act.dtype == torch.float64 else 4)
            by_token = point.side.whole and act.shape[-1] > 1  # `SampleStore` keeps projections
            for block in point.blocks if settings.class_of is not False else ():
                positions = act[0].numel() // act.shape[dim] * block.per_unit
                whole = positions * act.element_size()
                per_sample += block.units * (projected if positions > settings.projections or by_token else whole)
            layer = max(layer, 2 * act.nbytes)
        return cls(per_sample, layer, moments)

    def bytes_of(self, samples: int) -> dict[str, int]:
        """For so many samples that enter, in one pass over the data."""
        return {"samples": self.per_sample * samples, "layer": self.layer, "moments": self.moments}
