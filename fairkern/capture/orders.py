"""Second moments to scores: job by job as passes bring what they read, which is given back when no other waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from fairkern.capture.keeping import Keeper, KeptMoments
from fairkern.capture.moments import Half, MomentStore
from fairkern.capture.residual import Job, signal, solve
from fairkern.ranks import ALONE, Ranks
from fairkern.types import FloatArray, UnitMap


class Orders:
    """The residual of every group. `keep`: where moments go that no job of a pass waits for any more.

    Of several processes that have the same moments each does some of the jobs; files are those of the first.
    """

    def __init__(self, model: nn.Module, units: UnitMap, keep: bool | str, ranks: Ranks = ALONE) -> None:
        self._model, self._units, self._ranks = model, units, ranks
        self._keeper = Keeper(keep, writes=ranks.first)
        self._made: dict[Job, FloatArray] = {}

    def solve(self, store: MomentStore, todo: Sequence[Job], powers: Mapping[str, float]) -> None:
        """These jobs, of which the store has all moments."""
        waits = Counter(name for job in todo for name in job.moments)
        taken: dict[str, Half] = {}
        owners = self._ranks.dealt([job.cost for job in todo])
        for job, owner in zip(todo, owners, strict=True):
            taken.update((name, store.take(name)) for name in job.moments if name not in taken)
            if owner == self._ranks.rank:
                self._ranks.check()
                self._made[job] = solve(job, self._model, self._units, KeptMoments(taken), powers)
            for name in job.moments:
                waits[name] -= 1
                if not waits[name]:
                    self._keeper.keep(name, taken.pop(name))

    def signal(self) -> dict[int, FloatArray]:
        """Per scored group, once all jobs are done."""
        made = {job: found for part in self._ranks.gathered("orders", self._made) for job, found in part.items()}
        return signal(self._units, made)

    def kept(self, order: Sequence[str]) -> KeptMoments:
        return self._keeper.kept(order)
