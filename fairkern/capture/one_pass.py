"""One iteration over the loader: per batch a forward pass, and a backward one for gradients of activations alone."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.capture.alive import Alive
from fairkern.capture.among import Among
from fairkern.capture.batches import Batch, batches, first_samples
from fairkern.capture.classes import Choice
from fairkern.capture.fused import listening
from fairkern.capture.listener import Beside, Listener
from fairkern.capture.losses import Losses, LossFunction
from fairkern.capture.memory import Prediction, Trial
from fairkern.capture.moments import MomentStore, StateMeans
from fairkern.capture.norms import affine_norms
from fairkern.capture.points import Point
from fairkern.capture.pools import quick_maxima
from fairkern.capture.rehearsal import Rehearsal
from fairkern.capture.samples import SampleStore
from fairkern.capture.settings import LossReduction, Reduction, Settings
from fairkern.capture.sums import TaylorStore
from fairkern.capture.together import Family, families
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.autocast import NO_AUTOCAST, Ambient
from fairkern.model.checkpointing import kept_instead
from fairkern.model.fused import running_as
from fairkern.model.kept import changed, kept_objects
from fairkern.model.nested import call_model
from fairkern.model.process import let_others_in
from fairkern.model.sharded import in_shards
from fairkern.model.tensors import device_of
from fairkern.types import Side


class Pass:
    """One iteration over the loader. Without `taylor` it collects class samples only, with no gradients.

    `moments` and `states` may listen at points of their own. Of a memory budget (that of `settings`) `reserved` bytes
    are for other things than class samples.
    """

    def __init__(
        self,
        model: nn.Module,
        points: Sequence[Point],
        settings: Settings,
        loss_fn: LossFunction | None,
        *,
        taylor: TaylorStore | None = None,
        moments: MomentStore | None = None,
        states: StateMeans | None = None,
        ambient: Ambient = NO_AUTOCAST,
        reserved: int = 0,
        beside: Beside | None = None,
    ) -> None:
        self._model, self._settings = model, settings
        self._taylor, self._moments, self._states = taylor, moments, states
        self.choice = Choice(settings.samples_per_class)
        self.samples = SampleStore([] if settings.class_of is False else points, self.choice, settings, reserved)
        self._points = frozenset(points)
        own = [*(moments.points if moments else ()), *(states.points if states else ())]
        heard = list(dict.fromkeys([*points, *own]))
        self._listener = Listener(model, heard, gradients=taylor is not None, beside=beside)
        sharded = in_shards(model)
        self._among = Among(settings.ranks, sharded)
        losses = Losses(model, loss_fn, settings.seed)
        last = sharded or beside is not None  # hooks of shards, and who listens beside, take one pass after the other
        self._rehearsal = Rehearsal(model, self._listener, losses, ambient, self._among.any_of, last)
        self.grids: dict[Point, Counter[tuple[int, ...]]] = defaultdict(Counter)
        self.seen = self.batches = 0
        self.singly = False  # whether samples of a batch came one by one
        self.keeps: list[str] = []  # attributes of modules that every batch puts something into
        self.loss_sum = 0.0
        self.prediction: Prediction | None = None
        self._families: list[Family] = []  # of the batch under way
        self._together: dict[Point, Family] = {}
        self._waiting: list[Family] = []  # those of them whose gradients have not all come back

    def run(self, loader: Iterable[Any], number: int = 0) -> None:
        total = length_of(loader)
        stage = "scoring" if number == 0 else f"scoring, pass {number + 1}"
        with self._listening():
            for batch in batches(loader, self._model, self._settings.class_of, self._settings.samples_of):
                self.batches = batch.index + 1
                self.singly |= batch.parts.singly
                mine = self._among.comes(batch)
                second = mine and self._among.own == 2
                before = kept_objects(self._model) if second else {}  # the first may make what all use
                self._step(batch, mine, (batch.index + 1) / total if total and batch.index < total else 0.5)
                if second:
                    self.keeps = changed(before, kept_objects(self._model))
                self._settings.on_batch(self.batches, total, stage)
                let_others_in()
            for batch in self._among.without_own():
                self._join_in(batch)
            self._run_again()
        if self.batches == 0:
            raise InputError("the loader yields no batch")
        if self.seen == 0:
            raise InputError("the loader yields no sample: every batch is empty")
        self._add_up()

    def tried(self, batch: Batch, total: int | None) -> Trial:
        """What the first batch will take, from running one and two of its samples (or all, where it is not divided),
        and from the labels of all. Nothing is kept; a pass is tried or run."""
        assert self._taylor is not None
        done = 1 / total if total else 0.5
        with self._listening():
            sizes: dict[int, tuple[int, int]] = {}
            for some in (1, 2) if batch.parts.divisible and batch.samples > 2 else (batch.samples,):
                part = first_samples(batch, some)
                self._listener.reset(device_of(self._model))
                self.choice.begin(part.labels, done)
                with Alive() as alive:
                    self._backward(part, self._taylor, 1)
                    self._families = []
                self.prediction = self.prediction or self._predicted()
                sizes[some] = alive.peak, 0
            assert self.prediction is not None
        sizes = {some: (peak, self._held(first_samples(batch, some))) for some, (peak, _) in sizes.items()}
        whole = Choice(self._settings.samples_per_class)
        whole.begin(batch.labels, done)
        taken, held = (
            sizes[min(sizes)][k] + max(0, sizes[max(sizes)][k] - sizes[min(sizes)][k]) * (batch.samples - min(sizes))
            for k in (0, 1)
        )
        expected = 0 if self._settings.class_of is False else whole.expected
        return Trial(self.prediction, expected, taken, held)

    def _held(self, batch: Batch) -> int:
        """Bytes that are alive when a forward pass without gradients stands at a point, at most (`lockstep.Walk`)."""
        standing, listener = [0], Listener(self._model, self._listener.points, gradients=False)

        def stand(point: Point, _: Tensor) -> None:
            listener.forget(point)
            standing.append(alive.now())

        listener.on_heard = stand
        with torch.no_grad(), listener.attached(), Alive() as alive, listener.hearing():
            call_model(self._model, batch.inputs)
        return max(standing)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        experts = running_as(self._model, listening(self._listener.points, self._listener))
        quicker = affine_norms(self._model), quick_maxima(self._model)
        with quicker[0], quicker[1], experts, kept_instead(), self._rehearsal.attached(), torch.enable_grad():
            yield

    def _step(self, batch: Batch, mine: bool, done: float) -> None:
        if batch.samples == 0:
            return
        if batch.labels.ndim > 1 and self._settings.reduction is Reduction.PER_CLASS:
            raise InputError("reduction='per_class' needs one class label per sample, not one for every place")
        self.seen += batch.samples
        owner = self._among.owner(batch)
        self._among.counts(batch)
        if not mine:
            self.choice.pass_by(batch.labels, owner)
            return
        self.choice.begin(batch.labels, done, owner)
        if self._moments is not None:
            self._moments.batch = batch.index
        if self._taylor is None:
            with torch.no_grad():
                self._rehearsal.forward(batch)
            self._families = self._experts()
        else:
            weight = batch.samples if self._settings.loss_reduction is LossReduction.MEAN else 1
            self.loss_sum += self._backward(batch, self._taylor, weight) * weight
        if self.prediction is None:
            self.prediction = self._predicted()
        self._among.share_means(self._moments, heard=False)
        together = self._families if batch.labels.ndim == 1 else []
        for family in together:
            self.samples.add_rows(family)
        taken = {point for family in together for point in family.points}
        for point, act in self._listener.heard.items():
            if point in taken:
                if self._moments is not None:
                    self._moments.add(point, *self._rehearsal.by_sample(point, act), self._listener.elements(point))
            elif not point.side.scored:
                if self._states is not None:
                    self._states.add(point, act)
                if self._moments is not None and len(act):
                    self._moments.add(point, act, 1, act.numel())
            else:
                self._keep(point, act)
        if self._moments is not None:
            self._moments.settle()
        self._among.share_means(self._moments, heard=True)
        self._families = []
        self._listener.reset(device_of(self._model))

    def _join_in(self, batch: Batch) -> None:
        """Take part in a pass of others, who hear it."""
        with torch.set_grad_enabled(self._taylor is not None):
            loss = self._rehearsal.forward(batch)
        if loss.requires_grad:
            self._listener.backward(loss, lambda point, grad: None)
        self._among.share_means(self._moments, heard=False)
        self._listener.reset(device_of(self._model))

    def _run_again(self) -> None:
        """Of several processes the first one, where it has heard one batch of several: to see what the model keeps."""
        first = self._among.to_run_again
        if first is None or self.batches < 2:
            return
        before = kept_objects(self._model)
        with torch.no_grad():
            self._rehearsal.forward(first)
        self.keeps = changed(before, kept_objects(self._model))
        self._listener.reset(device_of(self._model))

    def _add_up(self) -> None:
        """What several processes have heard, in each of them; class samples wait for `SampleStore.utilization`."""
        ranks = self._settings.ranks
        if not ranks.several:
            return
        self._among.share_means(self._moments, heard=True)
        self._among.agree()
        for store in (self._taylor, self._moments, self._states):
            if store is not None:
                store.add_up(ranks)
        (loss,) = ranks.summed("the loss", [torch.tensor(self.loss_sum, dtype=torch.float64, device="cpu")])
        self.loss_sum = float(loss)
        numbers = {point: number for number, point in enumerate(self._listener.points)}
        own = [(numbers[point], sizes) for point, sizes in self.grids.items()]
        every = ranks.gathered("the pass", (own, self.keeps, self.prediction))
        self.keeps = sorted({name for _, keeps, _ in every for name in keeps})
        begun = every[self._among.begun]
        self.prediction = begun[2]
        self.grids = defaultdict(Counter)
        for grids in (begun[0], *(told[0] for told in every if told is not begun)):
            for number, sizes in grids:
                self.grids[self._listener.points[number]].update(sizes)

    def _keep(self, point: Point, act: Tensor) -> None:
        """The size of the map, the class samples and the moments of what was heard at a point."""
        grid = tuple(act.shape[point.dim :][1:])
        if grid and point.side is Side.INPUT:
            self.grids[point][grid] += math.prod(act.shape[: point.dim])
        by_sample, dim = self._rehearsal.by_sample(point, act)
        self.samples.add(point, by_sample, dim, self._rehearsal.layouts[point])
        if self._moments is not None:
            self._moments.add(point, by_sample, dim, self._listener.elements(point))

    def _predicted(self) -> Prediction:
        heard = []
        for point, act in self._listener.heard.items():
            if point in self._points:
                by_sample, dim = self._rehearsal.shaped(point, act)
                layout = self._rehearsal.layouts[point]
                heard.append((point, *self.choice.seen(point, by_sample, dim, layout)[:2]))
        return Prediction.of(heard, self._settings, self._moments.halves_bytes if self._moments else 0)

    def _backward(self, batch: Batch, taylor: TaylorStore, weight: int) -> float:
        """Forward, and backward to the points; the Taylor sums are added to those in `taylor`, `weight` times."""
        listener, gradient = self._listener, partial(self._add_gradient, taylor, weight)
        loss = self._rehearsal.forward(batch)
        value = float(loss.detach())
        if not np.isfinite(value):
            self._blame_loss(batch, value)
        room = 2 * max(act.nbytes for act in listener.heard.values())  # as `memory.Prediction` has it
        taylor.begin(weight, room, batch.labels)
        self._families = self._experts()
        together = self._families if taylor.by_rows else []
        self._together, self._waiting = {p: family for family in together for p in family.points}, [*together]
        if loss.requires_grad:
            listener.backward(loss, gradient)
        for family in self._waiting:  # not all gradients have come back
            taylor.add_rows(family.heard())
            family.grads.clear()
        self._together, self._waiting = {}, []
        for point, act in listener.heard.items():
            if not act.numel() and not taylor.heard(point):  # an expert without a token: zeros count as well
                gradient(point, act)
        taylor.flush()
        _check_sums(batch, taylor)
        return value

    def _add_gradient(self, taylor: TaylorStore, weight: int, point: Point, grad: Tensor) -> None:
        if self._moments is not None:
            self._moments.add_gradient(point, self._listener.by_token(point, grad), weight)
        if point not in self._points:
            return
        family = self._together.get(point)
        if family is not None:
            if len(grad):  # what was given no token waits for nothing
                family.grads[point] = grad
            if family in self._waiting and family.complete:
                self._waiting.remove(family)
                with torch.no_grad():
                    taylor.add_rows(family)
                family.grads.clear()
            return
        with torch.no_grad():
            act, dim = self._rehearsal.by_sample(point, self._listener.heard[point])
            taylor.add(point, act, self._rehearsal.by_sample(point, grad, gradient=True)[0], dim)

    def _experts(self) -> list[Family]:
        """Experts of the batch under way; where memory is counted each by itself, since gradients wait for others."""
        alone = self._settings.memory_budget is not None
        return families(self._listener, self._rehearsal.layouts, self._points, alone=alone)

    def _blame_loss(self, batch: Batch, value: float) -> None:
        for point in self._listener.points:
            if not bool(torch.isfinite(self._listener.heard[point]).all()):
                raise NonFiniteError(f"activations at {point.name} are not finite in batch {batch.index}")
        raise NonFiniteError(f"the loss of batch {batch.index} is {value}, and every activation scored is finite")


def _check_sums(batch: Batch, taylor: TaylorStore) -> None:
    if not taylor.reached():
        raise InputError(
            f"the loss of batch {batch.index} does not depend on any unit of the model; "
            "compute it from the model's output, without detach() or no_grad()"
        )
    bad = taylor.not_finite()
    if bad is not None:
        point, what = bad
        raise NonFiniteError(f"{what} at {point.name} are not finite in batch {batch.index}")


def length_of(loader: Iterable[Any]) -> int | None:
    """How many batches it has, if it says so."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has no length
        return None
