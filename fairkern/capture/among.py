"""The batches of a loader dealt out to several processes: whose each is, and whether all of them see the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from fairkern.capture.batches import Batch
from fairkern.capture.moments import MomentStore
from fairkern.errors import InputError
from fairkern.model.sharded import processes_of
from fairkern.model.sums import sum_of_model, sum_of_some
from fairkern.ranks import Ranks
from fairkern.ranks.digests import digest

_SAME = (
    "give every process all of the data, in the same order (no DistributedSampler, and one seed for what shuffles): "
    "batches are dealt out here"
)


def check_same(ranks: Ranks, what: str, model: nn.Module, given: Mapping[str, Any]) -> None:
    """Raises InputError where processes do not have the same model, to the bit, or were given other things, by name.
    Whether a bar shows how far it is may differ."""
    if ranks.several:
        said = {f"{name}=": digest(value) for name, value in given.items() if name != "progress"}
        ranks.agree(what, {"the model": sum_of_model(model), **said}, "load, seed or give it alike in every process")


def check_holders(ranks: Ranks, what: str, model: nn.Module) -> None:
    """Raises InputError where others than these processes hold a part of the model, which no pass can do without."""
    holders = processes_of(model)
    if holders > 1 and holders != ranks.size:
        raise InputError(
            f"this {type(model).__name__} lies in shards in {holders} processes, and each pass takes all of them; "
            f"{what} is called by {ranks.size}: pass ranks=True, or the process group of its mesh, in all of these"
        )


class Among:
    """Every process reads all batches and hears those of its own: batch `k` is that of rank `k mod size`. So which
    number a batch has, what is drawn in it and which samples enter U is as in a single process.

    Where they hold the model in shards (`joined`), each pass of one takes all of them, so that they make as many: those
    that have no batch left make theirs of a batch of another one, and hear nothing.

    `own`: batches that were heard here so far; `first`: the first of them, where there are several processes; `begun`:
    who heard the first of all that hold samples.
    """

    def __init__(self, ranks: Ranks, joined: bool = False) -> None:
        self.ranks, self.own, self.begun = ranks, 0, 0
        self._joined = joined and ranks.several
        self._passes = [0] * ranks.size
        self._any: Batch | None = None
        self.first: Batch | None = None
        self._last, self._filled, self._met = -1, False, False
        self._data = hashlib.sha256()

    def comes(self, batch: Batch) -> bool:
        """Whether the next batch (or the next part of it) is to be heard here. Raises what has stopped another process,
        and InputError where the first batches differ."""
        mine = self.ranks.own(batch.index)
        if self.ranks.several:
            self.ranks.check()
            self._data.update(sum_of_some((batch.parts.call, batch.parts.targets, batch.labels)).encode())
            if self._last < 0:
                self.ranks.agree("scoring", {"the first batch": self._data.hexdigest()}, _SAME)
            if not self._filled and batch.samples:
                self._filled, self.begun = True, self.owner(batch)
            if mine and self.first is None:
                self.first = batch
        self.own += mine and batch.index != self._last
        self._last = batch.index
        return mine

    def owner(self, batch: Batch) -> int:
        return batch.index % self.ranks.size

    def counts(self, batch: Batch) -> None:
        """A batch with samples comes by, of which its owner makes a pass."""
        self._passes[self.owner(batch)] += 1
        if self._joined:
            self._any = batch

    def without_own(self) -> list[Batch]:
        """Of which batches passes are still to be made here, since others make them."""
        more = max(self._passes) - self._passes[self.ranks.rank]
        return [] if self._any is None else [self._any] * more

    @property
    def to_run_again(self) -> Batch | None:
        """A batch, where the first process has heard one alone, and there; everywhere, where passes take all."""
        if self._joined:
            return self._any if self._passes[0] < 2 else None
        return self.first if self.ranks.first and self.own < 2 else None

    def any_of(self, here: bool) -> bool:
        """Whether something is so in a process that makes the same passes."""
        return any(self.ranks.gathered("a pass", here)) if self._joined else here

    def agree(self) -> None:
        """Raises InputError where the data that came by differ."""
        if self.ranks.several:
            self.ranks.agree("scoring", {"the loader's data": f"{self._last} {self._data.hexdigest()}"}, _SAME)

    def share_means(self, moments: MomentStore | None, *, heard: bool) -> None:
        """What the first batch has for means is taken off in all processes. To be called before a batch is added
        (`heard` is false) and after, and in the end."""
        if moments is None or self._met or not self.ranks.several or (self.begun == self.ranks.rank and not heard):
            return
        self._met = True
        means = self.ranks.told(
            f"the means of the first batch, by rank {self.begun}", lambda: moments.means_at_first, by=self.begun
        )
        if self.begun != self.ranks.rank:
            moments.take_off(means)
