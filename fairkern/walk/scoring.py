"""Scores by segments: forwards with what passes between them kept, then from the last to the first, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairkern.capture import Settings, capture
from fairkern.capture.batches import batches
from fairkern.capture.keeping import check_folder
from fairkern.capture.listener import Beside
from fairkern.capture.losses import Losses, LossFunction, seeded
from fairkern.capture.provenance import Clock
from fairkern.errors import InputError
from fairkern.model.nested import call_model, tensors_in
from fairkern.types import Scores, UnitMap
from fairkern.walk.boundaries import Boundaries, Kept, kept_batches
from fairkern.walk.chain import INSTEAD, chain_of, entries_of
from fairkern.walk.linear import along
from fairkern.walk.merging import merged
from fairkern.walk.outside import Outside
from fairkern.walk.paged import Weights
from fairkern.walk.segments import Division, divide, part_of
from fairkern.walk.traversal import Traversal, kept_in, running


def by_blocks(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None,
    units: UnitMap,
    settings: Settings,
    *,
    folder: str | os.PathLike[str] | None = None,
    weights: Weights | None = None,
    division: Division | None = None,
) -> Scores:
    """What `capture` gives, from a walk over the blocks of `model`: forwards, then backwards segment by segment.

    Each segment is scored by `capture` as a model of its own, whose loss is linear: what passes out of it times the
    gradient that came back there. So sums have the same terms in the same order as those of one pass.

    `folder`: batches, what passes between segments and gradients lie in files there, which are gone at the end; None:
    in memory. `weights`: where those of a model on meta come from; it has values within a segment alone. `division`:
    its blocks, where they are known (`divided`). `loader` is iterated once.

    Raises InputError where the model is not a row of blocks of which each reads what the last one gives, and what
    `capture` raises.
    Cost: beyond one pass, one more forward pass, and what is before the blocks and behind them once more.
    """
    clock = Clock("forwards")
    with Boundaries(folder) as store:
        with clock.timed("forwards"):
            kept = kept_batches(store, loader)
            division = divided(model, kept, units, settings, weights, loss_fn) if division is None else division
            way = Traversal(model, units, division, store, settings, weights)
            walk = _Walk(way, kept, loss_fn)
            walk.forwards()
        scores = walk.backwards()
    seconds = {**scores.provenance["seconds"], **clock.seconds()}
    return replace(scores, provenance={**scores.provenance, "seconds": seconds})


def divided(
    model: nn.Module,
    loader: Iterable[Any],
    units: UnitMap,
    settings: Settings,
    weights: Weights | None = None,
    loss_fn: LossFunction | Literal[False] | None = False,
) -> Division:
    """The blocks of a model in segments, from a run on the first batch. Raises InputError where it has none.

    With a `loss_fn`, or None for the model's own loss, `by_blocks` compares that of this run with what it has.
    """
    paged = nullcontext() if weights is None else weights.on_call(model, entries_of(model))
    with paged, running(model, units):
        found = batches(loader, model, settings.class_of, settings.samples_of)
        batch = next((batch for batch in found if batch.samples), None)
        if batch is None:
            raise InputError("the loader yields no sample: every batch is empty")
        if loss_fn is False:
            return divide(chain_of(model, lambda: call_model(model, batch.parts.call)), units)
        losses = Losses(model, loss_fn, settings.seed)
        answers: list[tuple[Any, Tensor | None]] = []
        chain = chain_of(model, lambda: answers.append(losses.once(batch)))
        if answers[-1][1] is None:  # the model is asked in another way
            chain = chain_of(model, lambda: answers.append(losses.once(batch)))
        output, loss = answers[-1]
        assert loss is not None
        return divide(replace(chain, loss=float(loss), returned=sum(1 for _ in tensors_in(output))), units)


class _Walk:
    """That of one call of `by_blocks`. `found`: groups and their scores, the last ones first."""

    def __init__(self, way: Traversal, kept: Kept, loss_fn: LossFunction | None) -> None:
        self._way, self._kept, self._loss_fn = way, kept, loss_fn
        self._found: list[tuple[Sequence[int], Scores]] = []

    def forwards(self) -> None:
        way, division, units = self._way, self._way.division, self._way.units
        if way.settings.gram:
            check_folder(way.settings.keep_moments)
        if not any(_scored(units, groups) for groups in (division.before, *division.groups, division.behind)):
            raise InputError("no input changes any of the groups that may be cut: there is nothing to score")
        way.begin(self._kept)
        for k in range(len(division.segments)):
            way.forward(k)
        _check_same(way)

    def backwards(self) -> Scores:
        way, division, units = self._way, self._way.division, self._way.units
        n = len(division.segments)
        outside = Outside(way, self._kept, self._loss_fn)
        before, behind = _scored(units, division.before), _scored(units, division.behind)
        outside.check(before)
        scores = outside.behind(behind)
        self._add(behind, scores)
        for k in reversed(range(n)):
            scored = _scored(units, division.groups[k])
            further = any(_scored(units, groups) for groups in (division.before, *division.groups[:k]))
            if scored:
                self._add(scored, self._scored(k, scored, further))
            elif further:
                self._passed_back(k)
            if k + 1 < n or not before:  # what is behind runs once more for what is before
                way.drop(k + 1)
        if before:
            self._add(before, outside.before(before))
        return merged(units, self._found[::-1], outside.loss, outside.keeps, n)

    def _add(self, groups: Sequence[int], scores: Scores | None) -> None:
        if scores is not None:
            self._found.append((groups, scores))

    def _scored(self, k: int, groups: Sequence[int], further: bool) -> Scores:
        """The scores of groups in segment `k`; the gradient at boundary `k`, if it goes `further`."""
        way = self._way
        settings = replace(
            kept_in(way.settings, f"segment {k}"),
            class_of=False if way.settings.class_of is False else _labels,
            samples_of=None,
            on_batch=lambda done, total, stage: way.settings.on_batch(done, total, f"{stage}, {way.say(k)}"),
        )
        with way.segment(k) as segment:

            def loss(output: Tensor, targets: Any) -> Tensor:
                some = way.chosen(segment.last.samples)
                return along(output, way.gradient(k + 1, segment.last.batch, output.device, some))

            def take(found: Sequence[Tensor | None]) -> None:
                way.keep_gradient(k, segment.last.batch, found[0])

            beside = Beside(lambda: [segment.last.entered], take) if further else None
            return capture(segment, way.loader(), loss, part_of(way.units, groups), settings, beside)

    def _passed_back(self, k: int) -> None:
        """The gradient at boundary `k`, through a segment of which nothing is scored."""
        way = self._way
        with way.segment(k) as segment, running(segment, way.units), torch.enable_grad():
            for number, known in enumerate(way.known):
                with seeded(way.settings.seed + known.index):
                    output = segment(way.numbers(number))
                gradient = way.gradient(k + 1, number, output.device)
                way.keep_gradient(k, number, torch.autograd.grad(output, segment.last.entered, gradient)[0])


def _scored(units: UnitMap, groups: Sequence[int]) -> list[int]:
    """Those of the groups that samples score."""
    return [g for g in groups if g in units.scored]


def _labels(batch: Any) -> Tensor:
    labels: Tensor = batch[1]
    return labels


def _check_same(way: Traversal) -> None:
    """Raises InputError where blocks by themselves do not give what they gave within the model, on the first batch."""
    passed, end = way.division.chain.passed, way.blocks[-1].path
    if passed is None:
        return
    made = way.boundary(len(way.division.segments), 0, passed.device)
    near = torch.finfo(passed.dtype).eps ** 0.5  # rounding, and what follows from it in a router
    if made.shape != passed.shape or not bool(
        torch.linalg.vector_norm(made.double() - passed.double()) <= near * torch.linalg.vector_norm(passed.double())
    ):
        raise InputError(
            f"the blocks up to {end}, run by themselves, give something else than within the model: something passes "
            f"between them beside what each returns (a cache, a state); {INSTEAD}"
        )
