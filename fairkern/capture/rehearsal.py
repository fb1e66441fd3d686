"""What has to be known of a model before its activations can be taken for what they are: learned on the first batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, last_sample
from fairkern.capture.layout import PLAIN, Layout, locate, plain
from fairkern.capture.listed import ListedExperts
from fairkern.capture.listener import Listener
from fairkern.capture.losses import Losses
from fairkern.capture.points import Point
from fairkern.errors import InputError
from fairkern.model.autocast import NO_AUTOCAST, Ambient
from fairkern.model.kept import writes
from fairkern.model.tensors import device_of

T = TypeVar("T")


class Rehearsal:
    """Forward passes that are heard as they have to be.

    Four things about a model show only when it runs: which activations it overwrites after they were heard (these are
    copied from then on), whether it gives modules of a list that are alike different numbers of rows (from then on
    these are followed to where they were picked), whether it reads what one of them gave in several ways (from then on
    it is heard as it was given), and along which dimension of an activation the samples lie, with how
    many rows each.

    The first batch is rehearsed: it runs until nothing about it is new. All others run once and are checked, and one
    that shows something new is rehearsed as the first one was; what was learned stays.
    """

    def __init__(
        self,
        model: nn.Module,
        listener: Listener,
        losses: Losses,
        ambient: Ambient = NO_AUTOCAST,
        any_of: Callable[[bool], bool] = bool,
        last: bool = False,
    ) -> None:
        """`any_of`: whether something is so here or in another process that makes the same passes, of its own data.
        `last`: the pass that is heard has to be the last one of the model, for the sake of others who hear it.
        """
        self._model, self._listener, self._losses, self._ambient = model, listener, losses, ambient
        self._any_of, self._last = any_of, last
        self._listed = ListedExperts(model, listener.points, listener.hear)
        self._several: Mapping[Point, Layout] | None = None  # where the samples of a batch of several lie
        self.layouts: Mapping[Point, Layout] = {}  # of the batch that was heard last

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Around all passes: hooks on the model, removed on the way out."""
        with self._listener.attached(), self._listed.attached():
            yield

    def forward(self, batch: Batch) -> Tensor:
        """The loss, with everything heard and placed.

        Raises InputError (a point that is not reached, samples that cannot be told apart).
        Cost: one forward pass. For what has to be learned of the model another one, for layouts that shapes do not
        tell one of a single sample, and where that has written to what the model holds the batch's again.
        """
        loss = self._heard(batch)
        several = batch.samples > 1
        unknown = several and (self._several is None or self._misfit(self._several, batch) is not None)
        if unknown and plain(self._listener.carriers, batch.samples):
            self._several, unknown = dict.fromkeys(self._listener.points, PLAIN), False
        if self._any_of(unknown):
            written = writes(self._model)
            if unknown:
                self._several = self._located(batch)
            else:
                self._run_last(batch)
            if self._any_of(self._last or written()):
                loss = self._heard(batch)
        self.layouts = self._several if several and self._several is not None else _alone(self._listener.carriers)
        self._check_layouts(batch)
        return loss

    def by_sample(self, point: Point, x: Tensor, gradient: bool = False) -> tuple[Tensor, int]:
        """What was heard at a point, or its `gradient`, with samples first; and where its units lie then."""
        return self.layouts[point].by_sample(self._listener.whole(point, x, gradient), point.dim)

    def shaped(self, point: Point, x: Tensor) -> tuple[Tensor, int]:
        """What `by_sample` gives, for its shape: numbers of experts are any."""
        return self.layouts[point].by_sample(self._listener.shaped(point, x), point.dim)

    def _heard(self, batch: Batch) -> Tensor:
        """The loss of a run of which all was heard as it was when it came by, and all points were reached."""
        call = partial(self._losses.of, batch)
        loss = self._run(call)
        # of the first batch: it is asked in another way, or shows something new; seldom of a later one
        while self._any_of(loss is None or self._learns()):
            loss = self._run(call)
        missing = self._listener.missing()
        if missing is not None:
            like = (
                "a list of one image, as images of a list are scored" if batch.parts.singly else "those of the loader"
            )
            raise InputError(
                f"batch {batch.index} does not reach {missing.name}, which the traced example inputs did; "
                f"trace with inputs like {like}"
            )
        assert loss is not None
        return loss

    def _learns(self) -> bool:
        """Whether the last run showed something new, for which the next one is listened to in another way."""
        overwritten = self._listener.overwritten()
        self._listener.copied |= overwritten
        return self._listed.learns(self._listener.heard) or bool(overwritten)

    def _run(self, call: Callable[[], T]) -> T:
        self._listener.reset(device_of(self._model))
        with self._ambient.again(), self._listener.hearing(), self._listed.followed():
            result = call()
        self._place_rows()
        return result

    def _place_rows(self) -> None:
        """Says of what experts heard which tokens it belongs to, and of those without a token that they are silent."""
        listener = self._listener
        for point, act in list(listener.heard.items()):
            rows = self._listed.rows(point, act)
            if rows is not None:
                listener.place_rows(point, rows.tokens, rows.carrier)
        for point, carrier in self._listed.idle([p for p in listener.points if p not in listener.heard]):
            listener.place_rows(point, torch.zeros(0, dtype=torch.int64, device=carrier.device), carrier)

    def _located(self, batch: Batch) -> dict[Point, Layout]:
        """Layouts, by what is heard of the batch's last sample alone."""
        if batch.parts.entangled:
            raise InputError(
                f"where the {batch.samples} samples of batch {batch.index} lie shows by the last of them alone, which "
                "cannot be taken out of the batch, since that has rows of other things beside those of samples: give "
                "batches of one sample"
            )
        try:
            last = self._run_last(batch)
        except (RuntimeError, ValueError, IndexError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"where the {batch.samples} samples of batch {batch.index} lie in activations cannot be seen, since "
                f"the model does not run on the last of them alone ({type(error).__name__}: {first[:160]}); "
                "samples_of=lambda batch: 1 takes a batch for one sample (with class_of=False if it has no class)"
            ) from error
        found: dict[tuple[int, int], Layout] = {}  # experts share the tokens that they are given
        layouts = dict.fromkeys(self._listener.points, PLAIN)
        for p, act in self._listener.carriers.items():
            key = (id(act), p.dim)
            if key not in found:
                alone = last.get(p)
                found[key] = PLAIN if alone is None else locate(p, act, alone, batch.samples)
            layouts[p] = found[key]
        return layouts

    def _run_last(self, batch: Batch) -> dict[Point, Tensor]:
        """What carries the samples in a forward pass of a batch's last one alone; what was heard of the batch stays."""
        with torch.no_grad(), self._listener.aside():
            self._run(partial(self._losses.forward, last_sample(batch)))
            return dict(self._listener.carriers)

    def _misfit(self, layouts: Mapping[Point, Layout], batch: Batch) -> Point | None:
        """A point whose activation does not hold the batch's samples as it should."""
        heard = self._listener.carriers.items()
        return next((point for point, act in heard if not layouts[point].fits(act, batch.samples)), None)

    def _check_layouts(self, batch: Batch) -> None:
        point = self._misfit(self.layouts, batch)
        if point is not None:
            raise InputError(
                f"the activation at {point.name} has shape {tuple(self._listener.carriers[point].shape)} for "
                f"{batch.samples} samples of batch {batch.index}: its units cannot be told apart by class"
            )


def _alone(carriers: Mapping[Point, Tensor]) -> dict[Point, Layout]:
    """All that was heard belongs to the one sample, however others would lie."""
    return {p: Layout(0, len(act)) if p.dim % act.ndim else PLAIN for p, act in carriers.items()}
