"""Plans that every configuration can describe: as many units of every group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import fairkern as fk
from fairkern.plans.build import build


def equal_plan(model: Any, share: float = 0.75, kinds: tuple[str, ...] = ("neuron",)) -> fk.Plan:
    """The first units of every group of these kinds go, so that about this share stays."""
    units = fk.trace(model, {"input_ids": torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))})
    counts = [round((1 - share) * g.units) if g.kind in kinds and g.frozen is None else 0 for g in units.groups]
    removed = [
        np.arange(n) if g.sets == 1 else np.tile(np.arange(n), (g.sets, 1))
        for g, n in zip(units.groups, counts, strict=True)
    ]
    return fk.Plan.of(build(units, removed))
