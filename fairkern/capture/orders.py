"""Second moments to scores: job by job, as passes bring what they read, which goes when no other waits for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from fairkern.capture.jobs import SMALL, TOGETHER, Job, several
from fairkern.capture.keeping import Keeper, KeptMoments
from fairkern.capture.magnitudes import Squares
from fairkern.capture.memory import give_back
from fairkern.capture.moments import Half, MomentStore
from fairkern.capture.residual import signal, solve, squares
from fairkern.capture.settings import Settings
from fairkern.model.sharded import in_shards
from fairkern.model.tensors import device_of
from fairkern.types import FloatArray, UnitMap


class Orders:
    """The residual of every group.

    Of several processes that have the same moments each does some of the jobs; files are those of the first.
    """

    def __init__(self, model: nn.Module, units: UnitMap, settings: Settings) -> None:
        self._model, self._units, self._settings, self._ranks = model, units, settings, settings.ranks
        self._keeper = Keeper(settings.keep_moments, writes=self._ranks.first)
        self._made: dict[Job, FloatArray] = {}
        self.squares: dict[str, Squares] = {}  # by tap name, of all that was solved

    def solve(self, store: MomentStore, todo: Sequence[Job], powers: Mapping[str, float]) -> None:
        """These jobs, of which the store has all moments; a tap's go when no job waits for them any more."""
        if self._settings.memory_budget is not None or any(job.memory > SMALL for job in todo):
            give_back()
        waits = Counter(name for job in todo for name in job.moments)
        taken: dict[str, Half] = {}
        turn = threading.Lock()  # jobs may run side by side

        def begin(job: Job) -> KeptMoments:
            with turn:
                for name in job.moments:
                    if name not in taken:
                        taken[name] = store.take(name)
                        self.squares[name] = Squares.of(taken[name])
                return KeptMoments({name: taken[name] for name in job.moments})

        def end(job: Job) -> None:
            with turn:
                for name in job.moments:
                    waits[name] -= 1
                    if not waits[name]:
                        self._keeper.keep(name, taken.pop(name))

        def done(job: Job, told: Callable[[float], None] | None = None) -> FloatArray:
            self._ranks.check()
            moments, most = begin(job), self._settings.max_remove
            known = outputs.get(job)
            found = solve(job, self._model, self._units, moments, powers, most=most, told=told, outputs=known)
            end(job)
            return found

        owners = self._ranks.dealt([job.cost for job in todo])
        outputs = self._gathered(todo, owners, store.per_unit) if in_shards(self._model) else {}
        for job, owner in zip(todo, owners, strict=True):
            if owner != self._ranks.rank:
                begin(job)
                end(job)
        own = [job for job, owner in zip(todo, owners, strict=True) if owner == self._ranks.rank]
        together = TOGETHER if self._settings.memory_budget is None else 0  # a budget is for one at a time
        self._made |= several(own, done, device_of(self._model), self._told, together)

    def _gathered(
        self, todo: Sequence[Job], owners: Sequence[int], per_unit: Mapping[str, int]
    ) -> dict[Job, Mapping[str, Tensor]]:
        """What our own jobs read of weights in shards, which all processes gather together."""
        found: dict[Job, Mapping[str, Tensor]] = {}
        for job, owner in zip(todo, owners, strict=True):
            made = squares(job, self._model, self._units, per_unit)
            if owner == self._ranks.rank:
                found[job] = made
        return found

    def signal(self) -> dict[int, FloatArray]:
        """Per scored group, once all jobs are done."""
        made = {job: found for part in self._ranks.gathered("orders", self._made) for job, found in part.items()}
        return signal(self._units, made)

    def kept(self, order: Sequence[str]) -> KeptMoments:
        return self._keeper.kept(order)

    def _told(self, share: float) -> None:
        """Percent of these orders, as other stages tell batches."""
        self._settings.on_batch(int(100 * share), 100, "ordering units")
