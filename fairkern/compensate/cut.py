"""The cut with its compensation: what the removed units carried goes into the model that is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fairkern.compact import apply
from fairkern.compact.company import company
from fairkern.compensate.correction import Correction, fold
from fairkern.compensate.divergence import Loss
from fairkern.compensate.fit import Compensation
from fairkern.compensate.intercepts import Biases, Places, fulfil
from fairkern.compensate.joint import fit_together
from fairkern.compensate.one_shot import corrections
from fairkern.compensate.refit import refit
from fairkern.errors import InputError
from fairkern.interrupts import undivided
from fairkern.model.autocast import without_autocast
from fairkern.model.in_use import in_use
from fairkern.model.sharded import in_shards
from fairkern.ranks import ALONE, Ranks
from fairkern.types import ConfigChange, Plan, Scores, Told, silent


@dataclass(frozen=True, eq=False)
class Cut:
    """What is left of a model. `corrections`: the one-shot ones, which say what could be made up for.

    `biases`: by what it was decided which weights get a bias that have none; None where nothing was compensated.
    `config`: fields of the configuration that were set for them. `unplaced`: biases that it has no field for.
    `divergence`: of the outputs, before and after all layers were fitted together.
    """

    model: nn.Module
    corrections: tuple[Correction, ...] = ()
    biases: str | None = None
    config: tuple[ConfigChange, ...] = ()
    unplaced: tuple[str, ...] = ()
    divergence: tuple[float, float] | None = None


def cut(
    model: nn.Module,
    plan: Plan,
    method: Compensation,
    scores: Scores | None,
    loader: Iterable[Any] | None,
    *,
    inplace: bool,
    backend: str = "auto",
    biases: Biases = Biases.AUTO,
    loss: Loss | None = None,
    ranks: Ranks = ALONE,
    told: Told = silent,
) -> Cut:
    """The smaller model that `plan` leaves, and what was done. `loss`: what joint compensation goes by; how it is
    reduced and its seed are those of the scores. Of several processes each goes through some of the loader's batches,
    and all get the weights of the first.

    `told`: how far it is.

    A model in shards is compensated in one shot, and weights that have no bias are given none.

    Raises InputError where a method is not given what it needs: scores, for sequential and joint compensation a loader
    that can be iterated again and a model that is not cut in place, nor lies in shards; and what `corrections`,
    `fit_together` and `apply` raise.
    """
    if method is Compensation.NONE:
        return Cut(apply(model, plan, inplace=inplace, backend=backend))
    if scores is None:
        raise InputError(f"compensate={method.value!r} needs the scores that the plan was made from: pass scores=")
    if method.compares and scores.provenance.get("keeps"):
        raise InputError(
            f"compensate={method.value!r} walks through all batches together; this {type(model).__name__} keeps what "
            f"is of one batch in its modules (in {scores.provenance['keeps'][0]}): use compensate='least_squares'"
        )
    sharded = in_shards(model)
    if sharded and method.compares:
        raise InputError(
            f"compensate={method.value!r} takes the batches through two models layer by layer, and the processes that "
            "hold this one in shards gather a layer for one pass at a time: use compensate='least_squares'"
        )
    if sharded and biases is Biases.ADDED:
        raise InputError("biases=True gives weights biases, which a model in shards is not given: pass biases=False")
    if sharded:
        biases = Biases.NONE
    with in_use(model, "apply()", reading=not inplace), company(model, plan, "apply()"), without_autocast():
        places = Places(model, plan, scores.units, biases)
        if method.compares:
            again = _read_again(method, loader, inplace)
            found = corrections(model, plan, scores, Compensation.LEAST_SQUARES, places=places)
            made = refit(model, plan, scores, found, again, ranks=ranks, told=told)
        else:
            made = found = corrections(model, plan, scores, method, places=places)
        given = [c.axis for c in made if c.bias is not None]
        flags = places.flags(given)
        unplaced = places.unplaced(given, flags)

        def finish() -> nn.Module:
            small = apply(model, plan, inplace=inplace, backend=backend)
            fold(small, plan, made)
            fulfil(small, plan, flags)
            return small

        small = undivided(finish) if inplace else finish()
        divergence = None
        if method is Compensation.JOINT:
            said = {"mean": scores.provenance.get("loss_reduction") != "sum", "seed": scores.provenance.get("seed", 0)}
            chosen = replace(loss or Loss(), **said)
            divergence = fit_together(model, small, plan, scores.units, again, chosen, ranks, told)
        if not sharded:  # where every process has made its part, of the same sums
            ranks.spread("the cut model", list(small.parameters()))
    return Cut(small, tuple(found), places.rule, tuple(set_.change for set_ in flags), unplaced, divergence)


def _read_again(method: Compensation, loader: Iterable[Any] | None, inplace: bool) -> Iterable[Any]:
    asked = f"compensate={method.value!r}"
    if loader is None or isinstance(loader, Iterator):
        given = "none was given" if loader is None else "this one can be iterated once only"
        raise InputError(f"{asked} looks at the data again and needs a loader; {given}")
    if inplace:
        raise InputError(f"{asked} compares with the uncut model: it cannot be done with inplace=True")
    return loader
