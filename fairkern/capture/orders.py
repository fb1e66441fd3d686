"""Second moments to scores: heard in as many passes as the budget takes, given back group by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fairkern.capture.keeping import Keeper, KeptMoments
from fairkern.capture.moments import Half, MomentStore
from fairkern.capture.residual import readings, residual
from fairkern.types import UnitMap


class Orders:
    """The residual of every group, as passes bring its moments; what no group waits for any more goes to the keeper."""

    def __init__(self, model: nn.Module, units: UnitMap, keep: bool | str) -> None:
        self._model, self._units = model, units
        self._keeper = Keeper(keep)
        self.found: dict[int, np.ndarray] = {}

    def solve(self, store: MomentStore, groups: Sequence[int], powers: Mapping[str, float]) -> None:
        """For these groups, of which the store has all moments."""
        waits = Counter(name for g in groups for name in readings(self._units, g))
        taken: dict[str, Half] = {}
        for g in groups:
            needed = readings(self._units, g)
            taken.update((name, store.take(name)) for name in needed if name not in taken)
            self.found |= residual(self._model, self._units, KeptMoments(taken), powers, [g])
            for name in needed:
                waits[name] -= 1
                if not waits[name]:
                    self._keeper.keep(name, taken.pop(name))

    def kept(self, order: Sequence[str]) -> KeptMoments:
        return self._keeper.kept(order)
