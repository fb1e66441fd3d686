"""Scores of units, and what a later stage needs of the same pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fairkern.types.arrays import FloatArray
from fairkern.types.units import UnitMap

S = TypeVar("S", bound="Scores")


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over `count` vectors `a` of what a consumer reads, samples and places alike.

    Float64 on the CPU, wherever the model was; NumPy arrays become tensors. `per_unit` positions of the tap in a row
    share one entry of `a`: the tap has `n · per_unit` positions.
    """

    gram: Tensor  # [n, n], Σ a aᵀ
    total: Tensor  # [n], Σ a
    count: int
    per_unit: int = 1

    def __post_init__(self) -> None:
        for name in ("gram", "total"):
            given = getattr(self, name)
            if not isinstance(given, Tensor):  # torch.as_tensor would move it to the default device
                object.__setattr__(self, name, torch.from_numpy(given))


@dataclass(frozen=True, eq=False)
class JointMoments:
    """Sums over `count` pairs of vectors: `a` that a consumer read, `b` that it reads in a changed model.

    Float64 on the CPU. `kept`, int64 [k]: the positions of `b` that the sums are of, where it is not all n.
    """

    cross: Tensor  # [n, k], Σ a bᵀ
    gram: Tensor  # [k, k], Σ b bᵀ
    total: Tensor  # [n], Σ a
    changed: Tensor  # [k], Σ b
    count: int
    per_unit: int = 1
    kept: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Per group and unit: removal and protection signals, and what a later stage needs of the same pass.

    `signals["wasserstein"][g]` is the U-score and `signals["taylor"][g]` the R-score of group `g`:
    float64 `[sets · units]`, empty for a group that is frozen or that no input changes. `means[tap name]` is the mean
    activation per tap position, float64 `[length]`. `moments[tap name]` is there, for every tap that consumers read, if
    scoring was asked to keep them. `grids[tap name]`, where units have places behind their dimension: how many samples
    had a grid of which size.
    `provenance` says how they came about: settings, sample counts, backends, seconds.
    """

    units: UnitMap
    signals: Mapping[str, tuple[FloatArray, ...]]
    means: Mapping[str, FloatArray]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    grids: Mapping[str, Mapping[tuple[int, ...], int]] = field(default_factory=dict)


def signals_alone(scores: S) -> S:
    """Without what only compensation and further plans take: a few numbers a unit."""
    return replace(scores, means={}, moments={}, grids={})
