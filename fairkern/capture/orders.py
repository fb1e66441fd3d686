"""Second moments to scores: job by job as passes bring what they read, which is given back when no other waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from fairkern.capture.keeping import Keeper, KeptMoments
from fairkern.capture.moments import Half, MomentStore
from fairkern.capture.residual import Job, signal, solve
from fairkern.types import FloatArray, UnitMap


class Orders:
    """The residual of every group. `keep`: where moments go that no job of a pass waits for any more."""

    def __init__(self, model: nn.Module, units: UnitMap, keep: bool | str) -> None:
        self._model, self._units, self._keeper = model, units, Keeper(keep)
        self._made: dict[Job, FloatArray] = {}

    def solve(self, store: MomentStore, todo: Sequence[Job], powers: Mapping[str, float]) -> None:
        """These jobs, of which the store has all moments."""
        waits = Counter(name for job in todo for name in job.moments)
        taken: dict[str, Half] = {}
        for job in todo:
            taken.update((name, store.take(name)) for name in job.moments if name not in taken)
            self._made[job] = solve(job, self._model, self._units, KeptMoments(taken), powers)
            for name in job.moments:
                waits[name] -= 1
                if not waits[name]:
                    self._keeper.keep(name, taken.pop(name))

    def signal(self) -> dict[int, FloatArray]:
        """Per scored group, once all jobs are done."""
        return signal(self._units, self._made)

    def kept(self, order: Sequence[str]) -> KeptMoments:
        return self._keeper.kept(order)
