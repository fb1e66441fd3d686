"""Cuts of one model, or of what is left of it, within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairkern.capture.keeping import KeptMoments
from fairkern.capture.memory import SPARE, within
from fairkern.compensate import Compensation, Loss
from fairkern.compensate.cut import Cut, cut
from fairkern.compensate.intercepts import Biases
from fairkern.compensate.room import cut_bytes
from fairkern.errors import InputError
from fairkern.ranks import ALONE, Ranks
from fairkern.results import Plan, Scores
from fairkern.types import Told, silent


@dataclass(frozen=True)
class Cutter:
    """How cuts are made. `model`: the whole one, by whose loss joint compensation goes. `budget`: bytes beyond the
    first 128 MiB; 0: any."""

    model: nn.Module
    loader: Iterable[Any]
    loss_fn: Callable[[Any, Any], Tensor] | None
    samples_of: Callable[[Any], int] | None
    budget: int
    biases: Biases
    ranks: Ranks = ALONE
    told: Told = silent

    def cut(self, model: nn.Module, plan: Plan, scores: Scores, method: Compensation, *, inplace: bool = False) -> Cut:
        """What `plan` leaves of `model`. Raises InputError where that takes more than the budget."""
        over = self.over(model, plan, scores, method, inplace=inplace)
        if over > 0:
            raise InputError(
                f"memory_budget={self.budget:,} bytes is too small for compensate={method.value!r} of this plan. "
                f"The least that would do is {self.budget + over:,}"
            )
        how: dict[str, Any] = {"inplace": inplace, "biases": self.biases, "ranks": self.ranks, "told": self.told}
        with within(self.budget or None, "cutting"):
            loss = Loss(self.loss_fn, self.samples_of, self.model)
            return cut(model, plan, method, scores, self.loader, loss=loss, **how)

    def over(self, model: nn.Module, plan: Plan, scores: Scores, method: Compensation, *, inplace: bool = False) -> int:
        """Bytes by which a cut takes more than the budget, if there is one."""
        if not self.budget:
            return 0
        moments = scores.moments.nbytes if isinstance(scores.moments, KeptMoments) else 0
        cutting = cut_bytes(model, plan, scores.units, method, scores.provenance, inplace=inplace)
        return max(0, cutting - SPARE) + moments - self.budget
