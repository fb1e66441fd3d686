"""How large what units give is: the signal "activation", from the second moments that the residual is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fairkern.capture.moments import Half
from fairkern.capture.residual import experts_of, readings_of
from fairkern.types import FloatArray, UnitMap


class Squares(NamedTuple):
    """Mean squares of what is read at a tap, [n], of vectors of which `per_unit` positions in a row share an entry."""

    mean: FloatArray
    per_unit: int

    @classmethod
    def of(cls, half: Half) -> Squares:
        return cls((half.square.diagonal() / half.count).cpu().numpy(), half.per_unit)


def activation(units: UnitMap, squares: Mapping[str, Squares]) -> dict[int, FloatArray]:
    """Per scored group, float64 `[sets · units]`: the root of the mean square of what a unit gives to its consumers,
    added up over its positions and over the taps at which it is scored.

    Of positions that share an entry of the moments (a channel that a flatten has spread over places) it is their mean,
    and of a whole expert, or a branch, the mean of all that it adds. What an expert gives for tokens that go elsewhere
    counts as zero. `squares`: by tap name, of all taps that are read.
    """
    found = {}
    for g in units.scored:
        group = units.groups[g]
        powers = np.zeros(group.total)
        for tap in {tap.name: tap for tap in group.taps if tap.side.scored}.values():
            if tap.side.whole:
                powers += [squares[name].mean.sum() for name in experts_of(tap)]
                continue
            parts = []
            for name, _ in readings_of(tap, units, None):
                mean, per_unit = squares[name]
                parts.append(mean[tap.positions[:, ::per_unit] // per_unit].sum(1))
            powers += np.concatenate(parts)
        found[g] = np.sqrt(powers)
    return found
