"""Refit layers on what they read once those before them have been cut, so that errors do not add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.capture.apart import joint_moments_apart
from fairkern.capture.joint import joint_moments, reading_points
from fairkern.compact.cutting import copy_with
from fairkern.compact.descriptors import Held, Index, kept, silenced, tensors_of
from fairkern.compact.mask import masked, without_experts
from fairkern.compensate.correction import Consumer, Correction, by_axis, cannot_take, fold_whole
from fairkern.compensate.statistics import SecondMoments, summed, unchanged
from fairkern.model.linear import adds_bias, bias_of, groups_of, made_dim
from fairkern.ops.eliminate.config import RIDGE
from fairkern.plans.renaming import Renaming
from fairkern.ranks import ALONE, Ranks
from fairkern.types import (
    Axis,
    CallSite,
    JointMoments,
    Moments,
    Plan,
    Scores,
    Side,
    Silence,
    Tap,
    Told,
    UnitMap,
    silent,
)


def other_taps(model: nn.Module, units: UnitMap) -> list[Tap]:
    """What linear layers and convolutions read that is no group's tap: after a cut it may differ all the same."""
    read = (tap for g in units.prunable for tap in units.groups[g].taps if tap.side is not Side.BRANCH)
    heard = {site.module for tap in read for site in tap.sites}
    found = []
    for path, module in model.named_modules():
        if path in heard or not adds_bias(module) or "weight" not in module._parameters:
            continue
        weight, dim = module.get_parameter("weight"), 1 - made_dim(module)
        conv = isinstance(module, nn.modules.conv._ConvNd)
        axis = Axis(f"{path}.weight" if path else "weight", dim)
        length = weight.shape[dim] * groups_of(module)
        place = -1 - len(module.kernel_size) if conv else -1
        nothing = np.zeros((0, 1), dtype=np.int64)
        found.append(Tap((CallSite(path),), Side.INPUT, place, length, nothing, (axis,)))
    return found


def refit(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    found: Sequence[Correction],
    loader: Iterable[Any],
    ridge: float = RIDGE,
    now: Iterable[Any] | None = None,
    finish: Callable[[nn.Module], None] | None = None,
    ranks: Ranks = ALONE,
    told: Told = silent,
) -> list[Correction]:
    """What `fold` has to add to the cut model where its layers make up for what `plan` removes one after the other.

    It works on a copy in full size whose consumers ignore what goes. That starts from the one-shot corrections,
    `found`. Then, tap by tap in the order of the forward pass, every layer gets the weights that best give back, from
    what now arrives there, what it computed in `model`: with `a` read before and `b` now, `W ← W C_ab C_bb⁻¹` over the
    positions that stay. Layers that lose no input themselves are refitted as well, since what they read has changed.

    What `found` leaves alone is left alone here. What reads where nothing has changed or where the walk does not come
    (experts, whose tokens are others once something has been cut) keeps its one-shot correction. A weight that is read
    at several taps is refitted at the last of them. A layer that loses no input gets no bias if it has none. `loader`
    is iterated once for an order of the taps and once for the walk.

    `now`: of a part of a model, behind parts that have been cut, what it is given there, where `loader` has what the
    uncut ones give it. Then one batch goes at a time, and both loaders are iterated again for every tap.
    `ranks`: of several processes each has some of the batches, and all fit the same (not with `now`).
    `told`: how many layers have been refitted.
    `finish`: called in the end with the copy, which computes what the cut model does and shares what is the same.
    Cost: one walk, or up to a forward pass of both per tap, and per tap one Cholesky factorisation.
    """
    others, cuts = other_taps(model, scores.units), kept(plan)
    points = reading_points(model, loader, scores.units, others)
    readers = list(_readers(model, plan, scores, found, cuts, others, {p.name for p in points}))
    made, stays = {c.axis: c for c in found}, _staying(readers)
    with whole_cut(model, plan, found, [reader.consumer.axis for reader in readers]) as changed:
        around = partial(_without_experts, changed, plan)
        if now is None:
            steps = joint_moments(model, changed, loader, scores.units, points, around, ranks, stays)
        else:
            steps = joint_moments_apart(model, changed, (loader, now), scores.units, points, around, stays)
        with closing(steps):  # type: ignore[type-var]
            told(0, len(readers), "compensating")
            for k, (reader, statistics) in enumerate(_ready(readers, steps, scores.moments, ridge)):
                correction = reader.refitted(statistics)
                made[correction.axis] = correction
                fold_whole(model, changed, cuts, correction)
                told(k + 1, len(readers), "compensating")
            told(len(readers), len(readers), "compensating")  # where nothing has changed, nothing is refitted
        if finish is not None:
            finish(changed)
    return list(made.values())


@contextmanager
def whole_cut(
    model: nn.Module, plan: Plan, found: Sequence[Correction], more: Iterable[Axis] = ()
) -> Iterator[nn.Module]:
    """A copy in full size that ignores what goes, within this block, with corrections folded in.

    The weights of `found` and of the axes in `more` are its own, all others are shared with `model`.
    """
    cuts = kept(plan)
    changed = copy_with(model, _the_same(model, plan, [*(c.axis for c in found), *more]))
    with masked(changed, plan, strict=False):  # experts do not ignore what goes by themselves
        for correction in found:
            if correction.weight is not None:
                fold_whole(model, changed, cuts, correction)
        yield changed


def _the_same(model: nn.Module, plan: Plan, axes: Iterable[Axis]) -> list[tuple[Held, Tensor]]:
    """Parameters that nobody writes to where these axes' weights are refitted: a copy of the model can share them."""
    written = set(silenced(plan, Silence.ZERO))
    for axis in axes:
        place = bias_of(model, axis)
        written |= {axis.tensor, *([] if place is None else [f"{axis.module}.{place[1]}".lstrip(".")])}
    held = (held for held in tensors_of(model) if isinstance(held.tensor, nn.Parameter))
    return [(each, each.tensor.detach()) for each in held if written.isdisjoint(each.names)]


def _without_experts(changed: nn.Module, plan: Plan) -> AbstractContextManager[object]:
    return without_experts(changed, plan) or nullcontext()


@dataclass(frozen=True, eq=False)
class _Reader:
    """A weight that is refitted. `first`: its one-shot correction, or nothing where it loses no input."""

    consumer: Consumer
    first: Correction
    intercept: bool

    @property
    def names(self) -> list[str]:
        """The taps at which it reads."""
        return [tap.name for tap in self.consumer.taps]

    def refitted(self, statistics: SecondMoments) -> Correction:
        made = self.consumer.correction(statistics, intercept=self.intercept)
        return replace(self.first, weight=made.weight, bias=made.bias)


def _readers(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    found: Sequence[Correction],
    cuts: Mapping[str, Index],
    others: Sequence[Tap],
    heard: Set[str],
) -> Iterator[_Reader]:
    """Weights whose taps are all `heard`, and which may take what a fit gives."""
    corrected, renaming = {c.axis: c for c in found}, Renaming(plan)
    single = {held.names[0] for held in tensors_of(model) if len(held.names) == 1}
    groups = [scores.units.groups[g] for g in scores.units.prunable]
    for axis, taps in by_axis([*(tap for group in groups for tap in group.taps), *others]).items():
        if not heard >= {tap.name for tap in taps} or renaming.after(axis.tensor) is None:
            continue
        first = corrected.get(axis)
        untouched = axis.tensor not in single or cannot_take(model, scores.units, axis)
        left_alone = untouched if first is None else first.weight is None
        if left_alone:
            continue
        consumer = Consumer(model, axis, cuts.get(axis.tensor, {}), taps, scores)
        intercept = consumer.has_bias if first is None else first.bias is not None
        yield _Reader(consumer, first or Correction(axis, None, None, 0.0), intercept)


def _staying(readers: Sequence[_Reader]) -> dict[str, Tensor]:
    """By tap, the positions that stay of what is read there, where all readers say the same: no fit needs others of the
    changed model."""
    found: dict[str, list[Tensor | None]] = {}
    for reader in readers:
        consumer = reader.consumer
        left = consumer.index.get(consumer.axis.dim)
        alone = len(reader.names) == 1 and consumer.groups == 1 and left is not None and left.ndim == 1
        for name in reader.names:
            found.setdefault(name, []).append(left if alone else None)
    stays = {}
    for name, (first, *others) in found.items():
        if first is not None and all(other is not None and torch.equal(first, other) for other in others):
            stays[name] = first.cpu()
    return stays


def _ready(
    readers: Sequence[_Reader],
    steps: Iterable[tuple[str, JointMoments | None]],
    scored: Mapping[str, Moments],
    ridge: float,
) -> Iterator[tuple[_Reader, SecondMoments]]:
    """Readers as the walk comes to their last tap, where something has changed at any; one fit for those that share it.

    Of a tap where nothing has changed the moments are those that were `scored`.
    """
    waiting = list(readers)
    joint: dict[str, JointMoments | None] = {}
    shared: dict[tuple[JointMoments | Moments, ...], SecondMoments] = {}
    for name, moments in steps:
        joint[name] = moments
        shared = {key: known for key, known in shared.items() if moments in key}  # the same is read once more
        for reader in [r for r in waiting if set(r.names) <= joint.keys()]:
            waiting.remove(reader)
            if all(joint[n] is None for n in reader.names):
                continue
            key = tuple(joint[n] or scored[n] for n in reader.names)
            if key not in shared:
                parts = [m if isinstance(m, JointMoments) else unchanged(m) for m in key]
                shared[key] = SecondMoments(name, summed(parts), ridge)
            if reader.consumer.reads(shared[key].length):
                yield reader, shared[key]
        needed = {n for reader in waiting for n in reader.names}
        joint = {n: m for n, m in joint.items() if n in needed}
