"""The walk over a model's segments: what passes into each is kept, and one segment's weights are there at a time."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, batches, last_sample
from fairkern.capture.losses import seeded
from fairkern.capture.norms import affine_norms
from fairkern.capture.settings import Settings
from fairkern.errors import InputError
from fairkern.model.checkpointing import kept_instead
from fairkern.model.fused import one_by_one, running_as
from fairkern.model.nested import Call, call_model
from fairkern.model.replacements import in_place
from fairkern.model.tensors import device_of
from fairkern.model.untouched import untouched
from fairkern.types import UnitMap
from fairkern.walk.boundaries import Boundaries, Kept, kept_batches
from fairkern.walk.chain import INSTEAD, Block, not_a_number
from fairkern.walk.paged import Weights
from fairkern.walk.rows import Rows, rows_of
from fairkern.walk.segments import Division, Given, Segment, stubs


@dataclass(frozen=True)
class Known:
    """What is known of a batch, or of a sample of one that comes singly, as `capture.batches` counts them. `first`: the
    number of its first sample among all."""

    number: int
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
        self.batches: Kept | None = None
        self._rows: dict[tuple[Hashable, int], Rows] = {}  # where samples lie in so many tensors that are kept together
        self._probe: int | None = None  # the number of the batch by which that shows

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those that lie in segments, in order."""
        return tuple(block for segment in self.division.segments for block in segment)

    def begin(self, loader: Iterable[Any]) -> None:
        """Iterates over the loader once; its batches are kept, and boundary 0.

        Raises InputError for a loader that yields nothing, and where what a block is called with depends on what an
        earlier one returned.
        """
        self.batches = kept_batches(self.store, loader)
        with self.outside(self._record) as model, running(model, self.units):
            first = 0
            for batch in batches(self.batches, model, self.settings.class_of, self.settings.samples_of):
                if not batch.samples:
                    continue
                boundary, givens = self._before(model, batch)
                number = len(self.known)
                self.known.append(Known(batch.number, first, batch.samples, batch.labels))
                first += batch.samples
                self.store.put(("boundary 0", number), boundary)
                self.store.put(("given", number), givens)
                self.store.put(("call", number), batch.inputs)
                self._look(model, batch, number, boundary, givens)
        if not self.known:
            raise InputError("the loader yields no sample: every batch is empty" if len(self.batches) else _NO_BATCH)

    def forward(self, k: int) -> None:
        """Boundary `k + 1` from boundary `k`. Cost: a forward pass of the segment over all batches."""
        with self.segment(k) as segment, running(segment, self.units):
            for number, known in enumerate(self.known):
                numbers = self._numbers(known)
                made = self._run(segment, numbers)
                self.store.put((f"boundary {k + 1}", number), made)
                if number == self._probe:
                    alone = self._run(segment, numbers[-1:])
                    self._rows[f"boundary {k + 1}", 1] = rows_of([made], [alone], known.samples)

    def call_of(self, number: int, device: torch.device) -> Call:
        """What the model is called with for a batch, when it is to predict."""
        found: Call = self.store.get(("call", number), device)
        return found

    def boundary(self, k: int, number: int, device: torch.device) -> Tensor:
        """What passes into segment `k` of a batch."""
        found: Tensor = self.store.get((f"boundary {k}", number), device)
        return found

    def drop(self, k: int) -> None:
        """Forget boundary `k`."""
        for number in range(len(self.known)):
            self.store.drop((f"boundary {k}", number))

    @contextlib.contextmanager
    def segment(self, k: int) -> Iterator[Segment]:
        """Segment `k` as a model of its own, with its weights."""
        blocks = self.division.segments[k]
        first = sum(len(before) for before in self.division.segments[:k])

        def fetch(samples: Tensor) -> tuple[int, Tensor, Sequence[Given]]:
            return self._fetch(samples, k, slice(first, first + len(blocks)), device_of(segment))

        segment = Segment(self.model, blocks, fetch)
        with self._given(segment):
            yield segment

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
        with torch.enable_grad(), seeded(self.settings.seed + known.number):
            return segment(samples).detach()

    def _fetch(
        self, samples: Tensor, k: int, blocks: slice, device: torch.device
    ) -> tuple[int, Tensor, Sequence[Given]]:
        number = self.batch_of(samples)
        known = self.known[number]
        chosen = samples.cpu() - known.first
        some = None if len(chosen) == known.samples else chosen

        def of(what: str) -> Any:
            rows = None if some is None else self._rows.get((what, self.store.count((what, number))))
            take = None if rows is None or some is None else rows.taken(some, known.samples)
            return self.store.get((what, number), device, take)

        return number, of(f"boundary {k}"), of("given")[blocks]

    def _before(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Given]]:
        """Boundary 0 of a batch, and what every block is called with."""
        self._recorded: list[tuple[Tensor, Given]] = []
        with torch.enable_grad(), seeded(self.settings.seed + batch.number), contextlib.suppress(_Enough):
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
        return block.output(torch.full_like(boundary, float("nan")))

    def _look(self, model: nn.Module, batch: Batch, number: int, boundary: Tensor, givens: list[Given]) -> None:
        """Where samples lie in what passes into the first segment and in what blocks are given, once for each kind of
        call (with a mask, without)."""
        given = Boundaries.tensors(givens)
        if batch.samples == 1 or not batch.parts.divisible or ("given", len(given)) in self._rows:
            return
        alone, others = self._before(model, last_sample(batch))
        if self._probe is None:
            self._probe = number
            self._rows["boundary 0", 1] = rows_of([boundary], [alone], batch.samples)
        self._rows["given", len(given)] = rows_of(given, Boundaries.tensors(others), batch.samples)


_NO_BATCH = "the loader yields no batch"


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
