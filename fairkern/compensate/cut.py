"""The cut with its compensation: what the removed units carried goes into the model that is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from fairkern.compact import apply
from fairkern.compensate.correction import Correction, fold
from fairkern.compensate.fit import Compensation
from fairkern.compensate.one_shot import corrections
from fairkern.compensate.refit import refit
from fairkern.errors import InputError
from fairkern.interrupts import undivided
from fairkern.model.autocast import without_autocast
from fairkern.model.in_use import in_use
from fairkern.types import Plan, Scores


def cut(
    model: nn.Module,
    plan: Plan,
    method: Compensation,
    scores: Scores | None,
    loader: Iterable[Any] | None,
    *,
    inplace: bool,
    backend: str = "auto",
) -> tuple[nn.Module, list[Correction]]:
    """The smaller model that `plan` leaves, and the one-shot corrections, which say what could be made up for.

    Raises InputError where a method is not given what it needs: scores, for sequential compensation a loader that can
    be iterated again and a model that is not cut in place; and what `corrections` and `apply` raise.
    """
    if method is Compensation.NONE:
        return apply(model, plan, inplace=inplace, backend=backend), []
    if scores is None:
        raise InputError(f"compensate={method.value!r} needs the scores that the plan was made from: pass scores=")
    if method is Compensation.SEQUENTIAL and scores.provenance.get("keeps"):
        raise InputError(
            f"compensate='sequential' walks through all batches together; this {type(model).__name__} keeps what is "
            f"of one batch in its modules (in {scores.provenance['keeps'][0]}): use compensate='least_squares'"
        )
    with in_use(model, "apply()", reading=not inplace), without_autocast():
        if method is Compensation.SEQUENTIAL:
            found = corrections(model, plan, scores, Compensation.LEAST_SQUARES)
            made = refit(model, plan, scores, found, _read_again(loader, inplace))
        else:
            made = found = corrections(model, plan, scores, method)

        def finish() -> nn.Module:
            small = apply(model, plan, inplace=inplace, backend=backend)
            fold(small, plan, made)
            return small

        return (undivided(finish) if inplace else finish()), found


def _read_again(loader: Iterable[Any] | None, inplace: bool) -> Iterable[Any]:
    if loader is None or isinstance(loader, Iterator):
        given = "none was given" if loader is None else "this one can be iterated once only"
        raise InputError(f"compensate='sequential' looks at the data again and needs a loader; {given}")
    if inplace:
        raise InputError("compensate='sequential' compares with the uncut model: it cannot be done with inplace=True")
    return loader
