"""Nets with experts in a list, written in several ways, and what is cut from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from bench.zoo.mixtures import MIXTURES, Net
from fairkern.plans.removals import random_removal

X = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0))
UNEVEN = (6, 4, 8, 5, 7)

every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


def net(mixture: type[nn.Module], seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(mixture, **options).eval()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 7, 5, generator=generator), torch.arange(16) % 3) for _ in range(count)
    ]  # fmt: skip


def experts_of(units: fk.UnitMap) -> list[int]:
    return [g for g in units.prunable if units.groups[g].kind == "expert"]


def removals(units: fk.UnitMap, seed: int) -> Iterator[list[np.ndarray]]:
    """Shares of every group, and one unit of each alone."""
    nothing = [np.zeros(0, dtype=np.int64)] * len(units.groups)
    for share in (0.3, 0.7):
        yield random_removal(units, share, seed)
    for g in units.prunable:
        yield [np.array([units.groups[g].units - 1]) if i == g else none for i, none in enumerate(nothing)]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
