"""Scoring: one pass over the loader gives U, R and means; samples that memory does not hold take further passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from fairkern.capture.batches import Begun, batches
from fairkern.capture.keeping import check_folder
from fairkern.capture.listener import Beside
from fairkern.capture.losses import LossFunction
from fairkern.capture.magnitudes import activation
from fairkern.capture.memory import Shares, Trial, within
from fairkern.capture.moments import MomentStore, StateMeans
from fairkern.capture.one_pass import Pass, length_of
from fairkern.capture.orders import Orders
from fairkern.capture.points import Block, Point, branch_points, expert_points, hidden_points, points_of
from fairkern.capture.provenance import Clock, provenance
from fairkern.capture.samples import SampleStore, by_group
from fairkern.capture.settings import Recipe, Reduction, Settings
from fairkern.capture.sums import TaylorStore
from fairkern.errors import InputError
from fairkern.model.autocast import Ambient, without_autocast
from fairkern.model.replacements import in_place
from fairkern.model.tensors import device_of
from fairkern.model.unit_weights import weight_norms
from fairkern.model.untouched import untouched
from fairkern.types import Scores, Side, UnitMap


def capture(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None,
    units: UnitMap,
    settings: Settings,
    beside: Beside | None = None,
) -> Scores:
    """Score every unit of `units` that may be cut and that inputs change, in one pass over `loader`.

    `model` is left as it was. The first pass gives R, the means and U. Blocks of units whose class samples did not fit
    `memory_budget` get their U from further passes, forward only, and groups whose second moments did not fit get their
    order likewise (`memory.Shares`).

    `beside` is told further gradients of each batch's loss.

    Raises InputError (batches, labels, options, a loss that does not depend on the model, a loader that cannot
    be iterated twice when that is needed, a budget that is too small), NonFiniteError. What loader, model and
    loss raise passes through.
    Autocast that is entered holds for the model and its loss, and for none of our sums.
    """
    ambient = Ambient.now(device_of(model))
    with without_autocast(), within(settings.memory_budget, "scoring"):
        return _captured(model, loader, loss_fn, units, settings, ambient, beside)


def _captured(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None,
    units: UnitMap,
    settings: Settings,
    ambient: Ambient,
    beside: Beside | None,
) -> Scores:
    """Under `ambient` the model and its loss run, and nothing else."""
    if not units.prunable:
        raise InputError("no group of the unit map may be cut; print(units.explain()) gives the reasons")
    if not units.scored:
        raise InputError("no input changes any of the groups that may be cut: there is nothing to score")
    points, moments, states = _listened(model, units, settings)
    if settings.gram:
        settings.ranks.told("the folder for moments", lambda: check_folder(settings.keep_moments))
    orders = Orders(model, units, settings)
    clock = Clock("pass", "wasserstein", "residual")
    with untouched(model), in_place(model):
        model.eval()
        for parameter in model.parameters():  # no weight gradient is computed; ours start at the taps
            parameter.requires_grad_(False)
        by_class, device = settings.reduction is Reduction.PER_CLASS, device_of(model)
        how: dict[str, Any] = {"states": states, "ambient": ambient}
        trial, heard = None, loader
        if settings.memory_budget is not None:
            sums = TaylorStore(points, settings.backend, device, by_class=by_class)
            alone = Pass(model, points, settings, loss_fn, taylor=sums, moments=moments, **how)
            heard = Begun(loader)
            trial = settings.ranks.gathered("the first batch", _tried(model, heard, settings, alone))[0]
        shares = Shares(settings, units, {} if moments is None else moments.widths, trial)
        if shares.rest and isinstance(loader, Iterator):
            raise _once(settings, shares.enough)
        if moments is not None:
            moments = MomentStore(moments.points, units, shares.names(shares.first))
        taylor = TaylorStore(points, settings.backend, device, by_class=by_class)
        fitting = replace(settings, memory_budget=shares.samples)
        how["reserved"] = shares.reserved
        first = Pass(model, points, fitting, loss_fn, taylor=taylor, moments=moments, beside=beside, **how)
        with clock.timed("pass"):
            first.run(heard)
        if settings.class_of is not False:
            first.choice.check()
        with clock.timed("wasserstein"):
            utilization = first.samples.utilization()
        powers = {} if moments is None else moments.powers(first.seen)
        if moments is not None:
            with clock.timed("residual"):
                orders.solve(moments, shares.first, powers)
        stores = [first.samples]
        waiting = first.samples.dropped
        later = replace(settings, memory_budget=shares.later)
        for store in _further(model, loader, loss_fn, points, later, waiting, first.seen, ambient):
            utilization.update(store.utilization())
            stores.append(store)
        passes = len(stores)
        for todo in shares.rest:
            assert moments is not None
            names = set(shares.names(todo))
            again = MomentStore([p for p in moments.points if p.name in names], units)
            with clock.timed("pass"):
                further = Pass(model, [], settings, loss_fn, moments=again, ambient=ambient)
                further.run(loader, passes)
            _check_same(further, first.seen, passes)
            passes += 1
            with clock.timed("residual"):
                orders.solve(again, todo, powers)
    compared = by_group(utilization.items(), largest=True)
    unheard = [g for g in units.scored if settings.class_of is not False and not _whole(compared, g, units)]
    signals = (
        {} if settings.class_of is False else {"wasserstein": {g: u for g, u in compared.items() if g not in unheard}}
    )
    signals["taylor"] = taylor.reconstruction(settings.reduction, first.seen)
    if moments is not None:
        signals["residual"] = orders.signal()
        signals["activation"] = activation(units, orders.squares)
    signals |= weight_norms(model, units)
    return Scores(
        units=units,
        signals={name: _by_index(values, units) for name, values in signals.items()},
        means={**taylor.means(), **states.means()},
        moments=orders.kept([] if moments is None else [p.name for p in moments.points]),
        grids={point.name: dict(sizes) for point, sizes in first.grids.items()},
        provenance=settings.ranks.told(
            "the scores",
            lambda: provenance(
                settings,
                first,
                passes=passes,
                sample_bytes=max(store.peak for store in stores),
                device=device,
                seconds=clock.seconds(),
                no_classes=[units.groups[g].name for g in unheard],
                trial=trial,
            ),
        ),
    )


def _listened(
    model: nn.Module, units: UnitMap, settings: Settings
) -> tuple[list[Point], MomentStore | None, StateMeans]:
    """The points whose units are scored, and what sums up at these and others: moments, if asked for, and states."""
    points = points_of(units, Side.OUTPUT if settings.recipe is Recipe.PAPER else Side.INPUT)
    whole = [*expert_points(model, units), *branch_points(units)]  # what one adds is its output
    points += whole
    hidden = hidden_points(units) if settings.gram or settings.recipe is not Recipe.PAPER else []
    if not settings.gram:
        return points, None, StateMeans(hidden)
    scored_there = all(p.side is not Side.OUTPUT for p in points)
    read = points if scored_there else [*points_of(units, Side.INPUT), *whole]
    return points, MomentStore([*read, *hidden], units), StateMeans(hidden)


def _further(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None,
    points: Sequence[Point],
    settings: Settings,
    waiting: Sequence[Block],
    seen: int,
    ambient: Ambient,
) -> Iterator[SampleStore]:
    """Class samples of what is still `waiting`, as much as fits in a pass, until nothing is. `seen`: so many samples
    there were in the first pass."""
    number = 1
    while waiting:
        if isinstance(loader, Iterator):
            raise _once(settings, None)
        again = Pass(model, _only(points, waiting), settings, loss_fn, ambient=ambient)
        again.run(loader, number)
        _check_same(again, seen, number)
        yield again.samples
        waiting, number = again.samples.dropped, number + 1


def _tried(model: nn.Module, loader: Begun, settings: Settings, alone: Pass) -> Trial | None:
    """What the first batch will take; None where there is no sample in it."""
    batch = next(batches(loader.first, model, settings.class_of, settings.samples_of), None)
    return alone.tried(batch, length_of(loader)) if batch is not None and batch.samples else None


def _once(settings: Settings, enough: int | None) -> InputError:
    budget = "a larger budget" if enough is None else f"memory_budget={enough:,}"
    return InputError(
        f"memory_budget of {settings.memory_budget} bytes needs another pass over the data, and the "
        f"loader can be iterated once only; give a re-iterable loader or {budget}"
    )


def _check_same(again: Pass, seen: int, number: int) -> None:
    if again.seen != seen:
        raise InputError(
            f"the loader yields {again.seen} samples in pass {number + 1}, and {seen} in the first; memory_budget "
            "needs one that yields the same again, or a larger budget"
        )


def _only(points: Sequence[Point], blocks: Sequence[Block]) -> list[Point]:
    """The points that hold any of these blocks, with those blocks alone."""
    wanted = set(map(id, blocks))
    return [replace(p, blocks=kept) for p in points if (kept := tuple(b for b in p.blocks if id(b) in wanted))]


def _whole(scores: Mapping[int, np.ndarray], g: int, units: UnitMap) -> bool:
    """Whether every unit of a group has a score."""
    return g in scores and len(scores[g]) == units.groups[g].total


def _by_index(values: Mapping[int, np.ndarray], units: UnitMap) -> tuple[np.ndarray, ...]:
    """Of every group in order; of none where it was not scored."""
    return tuple(values.get(g, np.zeros(0)) for g in range(len(units.groups)))
