"""Scoring: one pass over the loader gives U, R and means; samples that memory does not hold take further passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from fairkern.capture.losses import LossFunction
from fairkern.capture.moments import MomentStore, StateMeans
from fairkern.capture.one_pass import Pass
from fairkern.capture.points import Block, Point, branch_points, expert_points, hidden_points, points_of
from fairkern.capture.provenance import Clock, provenance
from fairkern.capture.residual import jobs, signal, solve, squares
from fairkern.capture.samples import SampleStore, by_group
from fairkern.capture.settings import Recipe, Reduction, Settings
from fairkern.capture.sums import TaylorStore
from fairkern.errors import InputError
from fairkern.model.autocast import Ambient, without_autocast
from fairkern.model.replacements import in_place
from fairkern.model.sharded import in_shards
from fairkern.model.tensors import device_of
from fairkern.model.untouched import untouched
from fairkern.ranks import Ranks
from fairkern.types import FloatArray, Moments, Scores, Side, UnitMap


def capture(
    model: nn.Module, loader: Iterable[Any], loss_fn: LossFunction | None, units: UnitMap, settings: Settings
) -> Scores:
    """Score every unit of `units` that may be cut and that inputs change, in one pass over `loader`.

    `model` is left as it was. The first pass gives R, the means and U. Blocks of units whose class samples did not fit
    `memory_budget` get their U from further passes, forward only.

    Raises InputError (batches, labels, options, a loss that does not depend on the model, a loader that cannot
    be iterated twice when that is needed), NonFiniteError. What loader, model and loss raise passes through.
    Autocast that is entered holds for the model and its loss, and for none of our sums.
    """
    ambient = Ambient.now(device_of(model))
    with without_autocast():
        return _captured(model, loader, loss_fn, units, settings, ambient)


def _captured(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None,
    units: UnitMap,
    settings: Settings,
    ambient: Ambient,
) -> Scores:
    """Under `ambient` the model and its loss run, and nothing else."""
    if not units.prunable:
        raise InputError("no group of the unit map may be cut; print(units.explain()) gives the reasons")
    if not units.scored:
        raise InputError("no input changes any of the groups that may be cut: there is nothing to score")
    points, moments, states = _listened(model, units, settings)
    clock = Clock("pass", "wasserstein", "residual")
    with untouched(model), in_place(model):
        model.eval()
        for parameter in model.parameters():  # no weight gradient is computed; ours start at the taps
            parameter.requires_grad_(False)
        with clock.timed("pass"):
            by_class = settings.reduction is Reduction.PER_CLASS
            taylor = TaylorStore(points, settings.backend, device_of(model), by_class=by_class)
            first = Pass(
                model, points, settings, loss_fn, taylor=taylor, moments=moments, states=states, ambient=ambient
            )
            first.run(loader)
        if settings.class_of is not False:
            first.choice.check()
        with clock.timed("wasserstein"):
            utilization = first.samples.utilization()
        stores = [first.samples]
        waiting = first.samples.dropped
        for store in _further(model, loader, loss_fn, points, settings, waiting, first.seen, ambient):
            utilization.update(store.utilization())
            stores.append(store)
    compared = by_group(utilization.items(), largest=True)
    alone = [g for g in units.scored if settings.class_of is not False and not _whole(compared, g, units)]
    signals = (
        {} if settings.class_of is False else {"wasserstein": {g: u for g, u in compared.items() if g not in alone}}
    )
    signals["taylor"] = taylor.reconstruction(settings.reduction, first.seen)
    kept: dict[str, Moments] = {}
    if moments is not None:
        with clock.timed("residual"):
            powers = moments.powers(first.seen)
            kept = moments.moments()
            signals["residual"] = _residual(model, units, kept, powers, settings.ranks)
    return Scores(
        units=units,
        signals={name: _by_index(values, units) for name, values in signals.items()},
        means={**taylor.means(), **states.means()},
        moments=kept,
        grids={point.name: dict(sizes) for point, sizes in first.grids.items()},
        provenance=settings.ranks.told(
            "the scores",
            lambda: provenance(
                settings,
                first,
                passes=len(stores),
                sample_bytes=max(store.peak for store in stores),
                device=device_of(model),
                seconds=clock.seconds(),
                no_classes=[units.groups[g].name for g in alone],
            ),
        ),
    )


def _residual(
    model: nn.Module, units: UnitMap, moments: Mapping[str, Moments], powers: Mapping[str, float], ranks: Ranks
) -> dict[int, FloatArray]:
    """Every process orders the units of some sets. What of weights in shards that takes is gathered before."""
    todo = jobs(units)
    costs = [job.cost for job in todo]
    outputs: dict[int, Mapping[str, Tensor]] = {}
    if ranks.several and in_shards(model):
        for number, owner in enumerate(ranks.dealt(costs)):
            made = squares(todo[number], model, units, moments)
            if owner == ranks.rank:
                outputs[number] = made
    does = [partial(solve, job, model, units, moments, powers, outputs.get(n)) for n, job in enumerate(todo)]
    return signal(units, dict(zip(todo, ranks.shared_out("ordering units", does, costs), strict=True)))


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
            raise InputError(
                f"memory_budget of {settings.memory_budget} bytes needs another pass over the data, and the "
                "loader can be iterated once only; give a re-iterable loader or a larger budget"
            )
        again = Pass(model, _only(points, waiting), settings, loss_fn, ambient=ambient)
        again.run(loader, number)
        if again.seen != seen:
            raise InputError(
                f"the loader yields {again.seen} samples in pass {number + 1}, and {seen} in the first; memory_budget "
                "needs one that yields the same again, or a larger budget"
            )
        yield again.samples
        waiting, number = again.samples.dropped, number + 1


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
