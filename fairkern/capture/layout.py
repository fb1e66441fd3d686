"""Where a batch's samples lie in an activation: most often along its first dimension, but windows fold them into it
and some models carry time first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairkern.capture.points import Point
from fairkern.errors import InputError


@dataclass(frozen=True)
class Layout:
    """`fold` consecutive rows per sample along dimension `dim`, or samples that alternate (`interleaved`)."""

    dim: int = 0
    fold: int = 1
    interleaved: bool = False

    def by_sample(self, x: Tensor, units: int) -> tuple[Tensor, int]:
        """A view of `x` with samples first, and where dimension `units` is then."""
        units %= x.ndim
        if self == PLAIN:
            return x, units
        d = self.dim
        samples = x.shape[d] // self.fold
        x = x.unflatten(d, (self.fold, samples) if self.interleaved else (samples, self.fold))
        if self.interleaved:
            d += 1
        units += units > self.dim
        return x.movedim(d, 0), units + (units < d)

    def fits(self, x: Tensor, samples: int) -> bool:
        """Whether `x` holds so many samples in this way."""
        return x.shape[self.dim] == samples * self.fold


PLAIN = Layout()


def plain(heard: Mapping[Point, Tensor], samples: int) -> bool:
    """Whether dimension 0 holds the samples everywhere, and no other dimension could."""
    return all(
        act.shape[0] == samples
        and samples not in [n for d, n in enumerate(act.shape) if d not in (0, p.dim % act.ndim)]
        for p, act in heard.items()
    )


def locate(point: Point, act: Tensor, alone: Tensor, samples: int) -> Layout:
    """The layout of `act`, heard for `samples` samples, by what is heard for the last of them `alone`.

    Raises InputError where no layout explains both.
    """
    units = point.dim % act.ndim
    differ = [d for d, (n, m) in enumerate(zip(act.shape, alone.shape, strict=False)) if n != m]
    if samples == 1 and act.shape == alone.shape:
        return PLAIN
    if act.ndim == alone.ndim and len(differ) == 1 and differ[0] != units:
        (dim,) = differ
        fold = alone.shape[dim]
        if act.shape[dim] == samples * fold:
            ways = [Layout(dim, fold), Layout(dim, fold, True)] if fold > 1 else [Layout(dim)]
            errors = [_error(way, act, alone, units) for way in ways]
            best = min(range(len(ways)), key=errors.__getitem__)
            if errors[best] < 0.05:
                return ways[best]
    raise InputError(
        f"the activation at {point.name} has shape {tuple(act.shape)} for {samples} samples and {tuple(alone.shape)} "
        "for one, or other values: the model folds samples together before it, or mixes them, and its units cannot be "
        "told apart by sample or class; batches of one sample need not be"
    )


def _error(way: Layout, act: Tensor, alone: Tensor, units: int) -> float:
    """Relative difference between the last sample of the batch and the same sample alone."""
    last, one = way.by_sample(act, units)[0][-1].double(), way.by_sample(alone, units)[0][-1].double()
    return float(torch.linalg.vector_norm(last - one) / torch.linalg.vector_norm(one).clamp_min(1e-30))
