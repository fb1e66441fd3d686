"""The pass: one forward and one activation-gradient-only backward over the loader give U, R and the means."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, LossFunction, batches, last_sample, loss_of
from fairkern.capture.classes import Choice
from fairkern.capture.fused import expert_points, listening
from fairkern.capture.layout import PLAIN, Layout, locate, plain
from fairkern.capture.listed import ListedExperts
from fairkern.capture.memory import Prediction
from fairkern.capture.moments import MomentStore, StateMeans
from fairkern.capture.norms import affine_norms
from fairkern.capture.points import Block, Listener, Point, hidden_points, points_of
from fairkern.capture.residual import residual
from fairkern.capture.samples import SampleStore, by_group
from fairkern.capture.settings import LossReduction, Recipe, Reduction, Settings
from fairkern.capture.sums import TaylorStore
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.fused import running_as
from fairkern.model.nested import call_model
from fairkern.model.replacements import in_place
from fairkern.model.tensors import device_of
from fairkern.model.untouched import untouched
from fairkern.types import Moments, Scores, Side, UnitMap


def capture(
    model: nn.Module, loader: Iterable[Any], loss_fn: LossFunction | None, units: UnitMap, settings: Settings
) -> Scores:
    """Score every prunable unit of `units` in one pass over `loader`; `model` is left as it was.

    The first pass gives R, the means and U. Blocks of units whose class samples did not fit `memory_budget`
    get their U from further passes, forward only.

    Raises InputError (batches, labels, options, a loss that does not depend on the model, a loader that cannot
    be iterated twice when that is needed), NonFiniteError. What loader, model and loss raise passes through.
    """
    if not units.prunable:
        raise InputError("no group of the unit map may be cut; print(units.explain()) gives the reasons")
    points = points_of(units, Side.OUTPUT if settings.recipe is Recipe.PAPER else Side.INPUT)
    experts = expert_points(model, units)  # what one adds to its tokens is its output
    points += experts
    hidden = hidden_points(units) if settings.gram or settings.recipe is not Recipe.PAPER else []
    moments = MomentStore([*_read(points, experts, units), *hidden], units) if settings.gram else None
    states = StateMeans(hidden)
    started = time.perf_counter()
    with untouched(model), in_place(model):
        model.eval()
        for parameter in model.parameters():  # no weight gradient is computed; ours start at the taps
            parameter.requires_grad_(False)
        by_class = settings.reduction is Reduction.PER_CLASS
        taylor = TaylorStore(points, settings.backend, device_of(model), by_class=by_class)
        first = _Pass(model, points, settings, loss_fn, taylor=taylor, moments=moments, states=states)
        first.run(loader)
        passed = time.perf_counter()
        if settings.class_of is not False:
            first.choice.check()
        assert first.prediction is not None
        scored: dict[Block, np.ndarray] = first.samples.utilization()
        compared = time.perf_counter() - passed
        waiting, passes, peak = first.samples.dropped, 1, first.samples.peak
        while waiting:
            if isinstance(loader, Iterator):
                raise InputError(
                    f"memory_budget of {settings.memory_budget} bytes needs another pass over the data, and the "
                    "loader can be iterated once only; give a re-iterable loader or a larger budget"
                )
            again = _Pass(model, _only(points, waiting), settings, loss_fn)
            again.run(loader, passes)
            scored.update(again.samples.utilization())
            waiting, passes, peak = again.samples.dropped, passes + 1, max(peak, again.samples.peak)
    utilization = by_group(scored.items(), largest=True)
    reconstruction = taylor.reconstruction(settings.reduction, first.seen)
    signals = {"taylor": reconstruction}
    if settings.class_of is not False:
        signals = {"wasserstein": utilization, **signals}
    kept: dict[str, Moments] = {}
    fitted = time.perf_counter()
    if moments is not None:
        powers = moments.powers(first.seen)
        kept = moments.moments()
        signals["residual"] = residual(model, units, kept, powers)
    fitted = time.perf_counter() - fitted
    nothing = np.zeros(0)
    return Scores(
        units=units,
        signals={
            name: tuple(by_index.get(g, nothing) for g in range(len(units.groups)))
            for name, by_index in signals.items()
        },
        means={**taylor.means(), **states.means()},
        moments=kept,
        grids={point.name: dict(sizes) for point, sizes in first.grids.items()},
        provenance={
            "samples": first.seen,
            "batches": first.batches,
            "loss": first.loss_sum / first.seen,
            "classes": {}
            if settings.class_of is False
            else {str(label): count for label, count in sorted(first.choice.counts.items())},
            "samples_per_class": settings.samples_per_class,
            "projections": settings.projections,
            "seed": settings.seed,
            "recipe": settings.recipe.value,
            "reduction": settings.reduction.value,
            "pairs": settings.pairs.value,
            "loss_reduction": settings.loss_reduction.value,
            "backend": settings.backend,
            "passes": passes,
            "sample_bytes": peak,
            "predicted_bytes": first.prediction.of_classes(len(first.choice.counts)),
            "device": str(device_of(model)),
            "torch": torch.__version__,
            "seconds": {
                "pass": passed - started,
                "wasserstein": compared,
                "residual": fitted,
                "total": time.perf_counter() - started,
            },
        },
    )


class _Pass:
    """One iteration over the loader. Without `taylor` it collects class samples only, with no gradients.

    `moments` and `states` may listen at points of their own.
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
    ) -> None:
        self._model, self._settings, self._loss_fn = model, settings, loss_fn
        self.taylor, self.moments, self._states = taylor, moments, states
        self.choice = Choice(settings.samples_per_class)
        self.samples = SampleStore([] if settings.class_of is False else points, self.choice, settings)
        self._points = frozenset(points)
        own = [*(moments.points if moments else ()), *(states.points if states else ())]
        listened = list(dict.fromkeys([*points, *own]))
        self._listener = Listener(model, listened, gradients=taylor is not None)
        self._listed = ListedExperts(model, listened, self._listener.hear)
        self._layouts: dict[Point, Layout] = {}
        self._layouts_known = False
        self.grids: dict[Point, Counter[tuple[int, ...]]] = defaultdict(Counter)
        self.seen = self.batches = 0
        self.loss_sum = 0.0
        self.prediction: Prediction | None = None

    def run(self, loader: Iterable[Any], number: int = 0) -> None:
        total = _length(loader)
        stage = "scoring" if number == 0 else f"scoring, pass {number + 1}"
        experts = running_as(self._model, listening(self._listener.points, self._listener))
        with affine_norms(self._model), experts, self._listener.attached(), torch.enable_grad():
            for batch in batches(loader, device_of(self._model), self._settings.class_of):
                self._step(batch)
                self._settings.on_batch(self.batches, total, stage)
        if self.batches == 0:
            raise InputError("the loader yields no batch")
        if self.seen == 0:
            raise InputError("the loader yields no sample: every batch is empty")

    def _step(self, batch: Batch) -> None:
        self.batches += 1
        if batch.samples == 0:
            return
        if batch.labels.ndim > 1 and self._settings.reduction is Reduction.PER_CLASS:
            raise InputError("reduction='per_class' needs one class label per sample, not one for every place")
        self.choice.begin(batch.labels)
        listener = self._listener
        if self.taylor is None:
            with torch.no_grad():
                self._forward(batch)
        else:
            weight = batch.samples if self._settings.loss_reduction is LossReduction.MEAN else 1
            self.loss_sum += self._backward(batch, self.taylor, weight) * weight
        if self.prediction is None:
            self.prediction = self._predicted()
        for point, act in listener.heard.items():
            if self._states is not None and point.side is Side.HIDDEN:
                self._states.add(point, act)
                if self.moments is not None and len(act):
                    self.moments.add(point, act, 1, act.numel())
                continue
            grid = tuple(act.shape[point.dim :][1:])
            if grid and point.side is Side.INPUT:
                self.grids[point][grid] += math.prod(act.shape[: point.dim])
            by_sample, dim = self._layouts[point].by_sample(listener.whole(point, act), point.dim)
            self.samples.add(point, by_sample, dim, self._layouts[point])
            if self.moments is not None:
                self.moments.add(point, by_sample, dim, act.numel())
        self.seen += batch.samples
        listener.reset(device_of(self._model))

    def _predicted(self) -> Prediction:
        heard = []
        for point, act in self._listener.heard.items():
            if point in self._points:
                layout = self._layouts[point]
                by_sample, dim = layout.by_sample(self._listener.whole(point, act), point.dim)
                heard.append((point, *self.choice.seen(point, by_sample, dim, layout)[:2]))
        return Prediction.of(heard, self._settings, self.moments.full_bytes if self.moments else 0)

    def _forward(self, batch: Batch) -> Tensor:
        """The loss, everything heard; run again with copies of what the model overwrote after it was heard."""
        listener = self._listener
        while True:
            listener.reset(device_of(self._model))
            with listener.hearing(), self._listed.followed():
                loss = loss_of(self._model, batch, self._loss_fn)
            if not self._listed.following and self._listed.uneven(listener.heard):
                self._listed.following = True
                continue
            self._place_rows()
            missing = listener.missing()
            if missing is not None:
                raise InputError(
                    f"batch {batch.index} does not reach {missing.name}, which the traced example inputs did; "
                    "trace with inputs like those of the loader"
                )
            overwritten = listener.overwritten()
            listener.copied |= overwritten
            if not overwritten and self._located(batch):
                return loss

    def _place_rows(self) -> None:
        """Says of what experts heard which tokens it belongs to, and of those without a token that they are silent."""
        listener = self._listener
        for point, act in list(listener.heard.items()):
            rows = self._listed.rows(point, act)
            if rows is not None:
                listener.place_rows(point, rows.tokens, rows.carrier)
        for point, carrier in self._listed.idle([p for p in listener.points if p not in listener.heard]):
            listener.place_rows(point, torch.zeros(0, dtype=torch.int64, device=carrier.device), carrier)

    def _located(self, batch: Batch) -> bool:
        """Whether the layouts of what was heard were known; False: they are now, and what was heard is gone."""
        listener = self._listener
        if batch.samples == 1:  # all that was heard belongs to the one sample, however others would lie
            self._layouts = {
                p: Layout(0, len(act)) if p.dim % act.ndim else PLAIN for p, act in listener.carriers.items()
            }
            self._layouts_known = False
        elif not self._layouts_known:
            self._layouts_known = True
            if plain(listener.carriers, batch.samples):
                self._layouts = dict.fromkeys(listener.points, PLAIN)
            else:
                heard = dict(listener.carriers)
                listener.reset(device_of(self._model))
                with torch.no_grad(), listener.hearing(), self._listed.followed():
                    call_model(self._model, last_sample(batch).inputs)
                self._place_rows()
                found: dict[tuple[int, int], Layout] = {}  # experts share the tokens that they are given
                for p, act in heard.items():
                    key = (id(act), p.dim)
                    if key not in found:
                        alone = listener.carriers.get(p)
                        found[key] = PLAIN if alone is None else locate(p, act, alone, batch.samples)
                    self._layouts[p] = found[key]
                return False
        for point, act in listener.carriers.items():
            if self._layouts[point].samples(act) != batch.samples:
                raise InputError(
                    f"the activation at {point.name} has shape {tuple(act.shape)} for {batch.samples} samples of batch "
                    f"{batch.index}, unlike batch 0: its units cannot be told apart by class"
                )
        return True

    def _backward(self, batch: Batch, taylor: TaylorStore, weight: int) -> float:
        """Forward, and backward to the points; the Taylor sums are added to those in `taylor`, `weight` times."""
        listener = self._listener

        def gradient(point: Point, grad: Tensor) -> None:
            if self.moments is not None:
                self.moments.add_gradient(point, grad, weight)
            if point not in self._points:
                return
            with torch.no_grad():
                layout = self._layouts[point]
                act, dim = layout.by_sample(listener.whole(point, listener.heard[point]), point.dim)
                taylor.add(point, act, layout.by_sample(listener.whole(point, grad), point.dim)[0], dim)

        listener.on_gradient = gradient
        loss = self._forward(batch)
        value = float(loss.detach())
        if not np.isfinite(value):
            self._blame_loss(batch, value)
        room = 2 * max(act.nbytes for act in listener.heard.values())  # as `memory.Prediction` has it
        taylor.begin(weight, room, batch.labels)
        if loss.requires_grad:
            torch.autograd.grad(loss, [listener.root], allow_unused=True)
        for point, act in listener.heard.items():
            if not act.numel() and not taylor.heard(point):  # an expert without a token: zeros count as well
                gradient(point, act)
        taylor.flush()
        if not taylor.reached():
            raise InputError(
                f"the loss of batch {batch.index} does not depend on any unit of the model; "
                "compute it from the model's output, without detach() or no_grad()"
            )
        bad = taylor.not_finite()
        if bad is not None:
            point, what = bad
            raise NonFiniteError(f"{what} at {point.name} are not finite in batch {batch.index}")
        return value

    def _blame_loss(self, batch: Batch, value: float) -> None:
        for point in self._listener.points:
            if not bool(torch.isfinite(self._listener.heard[point]).all()):
                raise NonFiniteError(f"activations at {point.name} are not finite in batch {batch.index}")
        raise NonFiniteError(f"the loss of batch {batch.index} is {value}, and every activation scored is finite")


def _read(points: list[Point], experts: list[Point], units: UnitMap) -> list[Point]:
    """The points at which consumers read, those among `points` themselves where they are."""
    return points if all(p.side is not Side.OUTPUT for p in points) else [*points_of(units, Side.INPUT), *experts]


def _only(points: Sequence[Point], blocks: Sequence[Block]) -> list[Point]:
    """The points that hold any of these blocks, with those blocks alone."""
    wanted = set(map(id, blocks))
    return [replace(p, blocks=kept) for p in points if (kept := tuple(b for b in p.blocks if id(b) in wanted))]


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has no length
        return None
