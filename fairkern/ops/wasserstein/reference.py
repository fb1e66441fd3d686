"""The definition of the Wasserstein operators, in plain torch. Sums are kept in the dtype of the input here."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fairkern.surroundings import uncast


def quantile_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The common refinement of the grids i/n and j/m: index into the first, into the second, and width.

    In units of 1/(n·m) the grid points are the multiples of m and of n, so everything but the width is exact.
    """
    ends = torch.cat(
        (
            torch.arange(1, n + 1, device=device) * m,
            torch.arange(1, m + 1, device=device) * n,
        )
    ).unique()
    begins = torch.cat((ends.new_zeros(1), ends[:-1]))
    widths = (ends - begins).to(torch.float64) / (n * m)
    return begins // m, begins // n, widths


def distance_of_sorted(x: Tensor, y: Tensor, p: int) -> Tensor:
    """`W_p` along dimension 0 of sorted samples [n, …] and [m, …] → […]."""
    if len(x) == len(y):
        gap = (x - y).abs()
        mean = gap.mean(0) if p == 1 else gap.square().mean(0)
    else:
        i, j, widths = quantile_steps(len(x), len(y), x.device)
        gap = (x[i] - y[j]).abs()
        mean = torch.tensordot(widths.to(x.dtype), gap if p == 1 else gap.square(), dims=1)
    return mean if p == 1 else mean.sqrt()


@uncast
def wasserstein_1d(x: Tensor, y: Tensor, p: int) -> Tensor:
    """[N, C], [M, C] → [C]."""
    return distance_of_sorted(x.sort(0).values, y.sort(0).values, p)


@uncast
def class_wasserstein(x: Tensor, order: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    """[N, C, P]; `order` lists the rows class after class, `offsets` [K + 1] where each class begins in it."""
    bounds = offsets.tolist()
    classes = [x[order[begin:end]].sort(0).values for begin, end in pairwise(bounds)]
    pairs = (
        distance_of_sorted(classes[j], classes[k], p=1).mean(1)
        for j in range(len(classes))
        for k in range(j + 1, len(classes))
    )
    if reduce == "pairs":
        return torch.stack(list(pairs))
    best = next(pairs)
    for distance in pairs:
        best = torch.maximum(best, distance) if reduce == "max" else best + distance
    return best if reduce == "max" else best / (len(classes) * (len(classes) - 1) / 2)
