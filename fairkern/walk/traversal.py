"""The walk over a model's segments: what passes into each is kept, and one segment's weights are there at a time."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, batches, last_sample
from fairkern.capture.losses import seeded
from fairkern.capture.norms import affine_norms
from fairkern.capture.settings import Settings
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.checkpointing import kept_instead
from fairkern.model.fused import one_by_one, running_as
from fairkern.model.nested import Call, call_model
from fairkern.model.replacements import in_place
from fairkern.model.tensors import device_of
from fairkern.model.untouched import untouched
from fairkern.types import UnitMap
from fairkern.walk.boundaries import Boundaries, Kept
from fairkern.walk.chain import INSTEAD, Block, not_a_number, nowhere_a_number, runs_alone
from fairkern.walk.paged import Weights
from fairkern.walk.rows import Rows, rows_of
from fairkern.walk.segments import Division, Given, LastCall, Segment, stubs


@dataclass(frozen=True)
class Known:
    """What is known of a batch. `index`: its number among those of the loader, where some may be empty. `first`: the
    number of its first sample among all."""

    index: int
    first: int
    samples: int
    labels: Tensor


class _Enough(BaseException):
    """The run has come to the last block, and what is behind is not asked for."""


class Traversal:
    """What passes into every segment of a model, over a loader's batches.

    `begin` runs what comes before the segments and keeps, per batch, what passes into the first and what every block is
    called with besides (masks, positions, tables). `forward(k)` then runs segment `k` on what passes into it and keeps
    what passes out: boundary `k` is what passes into segment `k`, boundary `len(segments)` what passes out of the last.
    Batches without a sample are left out.

    `segment(k)` gives the segment as a model of its own, and `loader()` what it is called with, for whichever segment;
    so any stage that takes a model and a loader runs on it. `outside()` is the model without its segments.

    `weights`: where those of a model on meta come from; they are there within `segment` and `outside` alone.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitMap,
        division: Division,
        store: Boundaries,
        settings: Settings,
        weights: Weights | None = None,
    ) -> None:
        self.model, self.units, self.division = model, units, division
        self.store, self.settings, self.weights = store, settings, weights
        self.known: list[Known] = []
        self._rows: dict[tuple[Hashable, int], Rows] = {}  # where samples lie in so many tensors that are kept together
        self._probe: int | None = None  # the number of the batch by which that shows

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those that lie in segments, in order."""
        return tuple(block for segment in self.division.segments for block in segment)

    def begin(self, kept: Kept) -> None:
        """Keeps boundary 0 of all batches, and what blocks are given.

        Raises InputError for a loader that yields no sample, for images of a list, which come one by one, and where
        what a block is called with depends on what an earlier one returned.
        """
        with self.outside(self._record) as model, running(model, self.units):
            first = 0
            for batch in batches(kept, model, self.settings.class_of, self.settings.samples_of):
                if not batch.samples:
                    continue
                if batch.parts.singly:
                    raise InputError(f"the images of a list come one by one; {INSTEAD}")
                boundary, givens = self._before(model, batch)
                number = len(self.known)
                self.known.append(Known(batch.index, first, batch.samples, batch.labels))
                first += batch.samples
                self.store.put(("boundary 0", number), boundary)
                self.store.put(("given", number), givens)
                self.store.put(("call", number), batch.inputs)
                self._look(model, batch, number, boundary, givens)
        if not self.known:
            raise InputError("the loader yields no sample: every batch is empty")

    def forward(self, k: int) -> None:
        """Boundary `k + 1` from boundary `k`. Cost: a forward pass of the segment over all batches."""
        with self.segment(k) as segment, running(segment, self.units):
            for number, known in enumerate(self.known):
                numbers = self._numbers(known)
                names = ", ".join(block.path for block in segment.walked)
                with runs_alone(names) if number == 0 else contextlib.nullcontext():
                    made = self._run(segment, numbers)
                self.settings.on_batch(number + 1, len(self.known), f"forwards, {self.say(k)}")
                self.store.put((f"boundary {k + 1}", number), made)
                if number == self._probe:
                    alone = self._run(segment, numbers[-1:])
                    self._rows[f"boundary {k + 1}", 1] = rows_of(made, alone, known.samples)

    def call(self, number: int, device: torch.device) -> Call:
        """What the model is called with for a batch when it is to predict."""
        found: Call = self.store.get(("call", number), device)
        return found

    def say(self, k: int) -> str:
        """Which segment it is, in words."""
        return f"segment {k + 1} of {len(self.division.segments)}"

    def numbers(self, number: int) -> Tensor:
        """Those of the samples of a batch, int64 [samples]: what a segment is called with."""
        return self._numbers(self.known[number])

    def boundary(self, k: int, number: int, device: torch.device, chosen: Tensor | None = None) -> Tensor:
        """What passes into segment `k` of a batch; of the `chosen` of its samples, which are counted from 0."""
        return self._of_boundary("boundary", k, number, device, chosen)

    def gradient(self, k: int, number: int, device: torch.device, chosen: Tensor | None = None) -> Tensor:
        """That of a batch's loss at boundary `k`; of the `chosen` samples."""
        return self._of_boundary("gradient", k, number, device, chosen)

    def _of_boundary(self, what: str, k: int, number: int, device: torch.device, chosen: Tensor | None) -> Tensor:
        rows = None if chosen is None else self._rows.get((f"boundary {k}", 1))
        take = None if rows is None or chosen is None else rows.taken(chosen, self.known[number].samples)
        found: Tensor = self.store.get((f"{what} {k}", number), device, take)
        return found

    def chosen(self, samples: Tensor) -> Tensor | None:
        """Which of its batch's samples these are, counted from 0; None: all."""
        known = self.known[self.batch_of(samples)]
        return None if len(samples) == known.samples else samples.cpu() - known.first

    def samples_in(self, number: int, boundary: Tensor) -> Tensor | None:
        """Which samples of a batch it is that boundary 0 is of, of which the model may be given the first or last few;
        None: all."""
        whole = self.boundary(0, number, boundary.device)
        rows = self._rows.get(("boundary 0", 1))
        if whole.shape == boundary.shape or rows is None:
            return None
        samples = self.known[number].samples
        some = rows.samples_in(boundary)
        ways = [torch.arange(some, device="cpu"), torch.arange(samples - some, samples, device="cpu")]
        far = [float((rows.taken(way, samples)(0, whole).double() - boundary.double()).abs().sum()) for way in ways]
        return ways[int(far[1] < far[0])]

    def keep_gradient(self, k: int, number: int, gradient: Tensor | None) -> None:
        """That of a batch's loss at boundary `k`; None: nothing comes back there. Raises NonFiniteError."""
        if gradient is None:
            gradient = torch.zeros_like(self.boundary(k, number, torch.device("cpu")))
        if not bool(torch.isfinite(gradient).all()):
            path = self.division.segments[max(k - 1, 0)][-1].path
            raise NonFiniteError(f"gradients behind {path} are not finite in batch {self.known[number].index}")
        self.store.put((f"gradient {k}", number), gradient)

    def drop(self, k: int) -> None:
        """Forget boundary `k`, and the gradient there."""
        for number in range(len(self.known)):
            self.store.drop((f"boundary {k}", number))
            self.store.drop((f"gradient {k}", number))

    @contextlib.contextmanager
    def segment(self, k: int) -> Iterator[Segment]:
        """Segment `k` as a model of its own, with its weights."""
        blocks = self.division.segments[k]
        first = sum(len(before) for before in self.division.segments[:k])

        def fetch(samples: Tensor) -> tuple[int, Tensor, Sequence[Given]]:
            return self._fetch(samples, k, slice(first, first + len(blocks)), device_of(segment))

        segment = Segment(self.model, blocks, fetch)
        try:
            with self._given(segment):
                yield segment
        finally:
            segment.last = LastCall()  # what passed in goes with the segment, whoever still holds that

    @contextlib.contextmanager
    def outside(self, called: Callable[[int, Block, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[nn.Module]:
        """The model with stubs in the places of its blocks, which do what `called` does, and with its other weights."""
        with stubs(self.model, self.blocks, called), self._given(self.model):
            yield self.model

    def _given(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.weights is None else self.weights.given(model)

    def loader(self) -> SampleNumbers:
        """What a segment is called with: of every batch `(numbers of its samples, labels)`."""
        return SampleNumbers([(self._numbers(known), known.labels) for known in self.known])

    def batch_of(self, samples: Tensor) -> int:
        """The number of the batch, among `known`, that holds these samples."""
        return bisect.bisect_right([known.first for known in self.known], int(samples[0])) - 1

    def _numbers(self, known: Known) -> Tensor:
        return torch.arange(known.first, known.first + known.samples, dtype=torch.int64, device="cpu")

    def _run(self, segment: Segment, samples: Tensor) -> Tensor:
        """As when it is scored: with gradients on, since other kernels may run without."""
        known = self.known[self.batch_of(samples)]
        with torch.enable_grad(), seeded(self.settings.seed + known.index):
            return segment(samples).detach()

    def _fetch(
        self, samples: Tensor, k: int, blocks: slice, device: torch.device
    ) -> tuple[int, Tensor, Sequence[Given]]:
        number = self.batch_of(samples)
        known = self.known[number]
        some = self.chosen(samples)
        rows = None if some is None else self._rows.get(("given", self.store.count(("given", number))))
        take = None if rows is None or some is None else rows.taken(some, known.samples)
        return number, self.boundary(k, number, device, some), self.store.get(("given", number), device, take)[blocks]

    def _before(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Given]]:
        """Boundary 0 of a batch, and what every block is called with."""
        self._recorded: list[tuple[Tensor, Given]] = []
        with torch.enable_grad(), seeded(self.settings.seed + batch.index), contextlib.suppress(_Enough):
            call_model(model, batch.parts.call)
        if len(self._recorded) < len(self.blocks):
            raise InputError(
                f"batch {batch.index} does not reach {self.blocks[len(self._recorded)].path}, which the first inputs "
                f"did; {INSTEAD}"
            )
        boundary, givens = self._recorded[0][0], [given for _, given in self._recorded]
        self._recorded = []
        return boundary, givens

    def _record(self, number: int, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if number != len(self._recorded):
            raise InputError(
                f"{block.path} is called after {number} others at first, and now after {len(self._recorded)}; {INSTEAD}"
            )
        given, boundary = Given.of(args, kwargs, block.given)
        if number and not_a_number(given):
            raise InputError(
                f"{block.path} is given more of earlier blocks than what the one before it passes on; {INSTEAD}"
            )
        self._recorded.append((boundary.detach(), given))
        if number == len(self.blocks) - 1:
            raise _Enough
        return block.output(nowhere_a_number(boundary))

    def _look(self, model: nn.Module, batch: Batch, number: int, boundary: Tensor, givens: list[Given]) -> None:
        """Where samples lie in what passes into the first segment and in what blocks are given, once for each kind of
        call (with a mask, without)."""
        given = Boundaries.tensors(givens)
        if batch.samples == 1 or not batch.parts.divisible or ("given", len(given)) in self._rows:
            return
        alone, others = self._before(model, last_sample(batch))
        if self._probe is None:
            self._probe = number
            self._rows["boundary 0", 1] = rows_of(boundary, alone, batch.samples)
        self._rows["given", len(given)] = rows_of(givens, others, batch.samples)


class SampleNumbers:
    """A loader of `(numbers of samples, labels)`, the same whenever it is iterated."""

    def __init__(self, given: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._given)


@contextlib.contextmanager
def running(model: nn.Module, units: UnitMap) -> Iterator[None]:
    """Within, a model or a segment computes as it does in a pass that scores; it is left as it was."""
    with untouched(model), in_place(model):
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with affine_norms(model), running_as(model, _experts(model, units)), kept_instead():
            yield


def kept_in(settings: Settings, part: str) -> Settings:
    """With a folder of its own for the moments of a part of the model, where they go to files."""
    where = settings.keep_moments
    return settings if isinstance(where, bool) else replace(settings, keep_moments=os.path.join(where, part))


def _experts(model: nn.Module, units: UnitMap) -> Mapping[str, Any]:
    """Modules of fused experts that hold units, one expert after the other."""
    paths = {
        site.module
        for g in units.scored
        for tap in units.groups[g].taps
        if tap.side.of_experts
        for site in tap.sites
        if site.module not in units.lists
    }
    there = dict(model.named_modules())
    return {path: one_by_one for path in paths if path in there}
