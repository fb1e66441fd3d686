"""Batches on their way through a model and through what is left of it, one segment of both at a time."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.losses import seeded
from fairkern.model.nested import call_with, own
from fairkern.model.replacements import in_place
from fairkern.model.tensors import device_of
from fairkern.model.untouched import untouched
from fairkern.walk.boundaries import Boundaries
from fairkern.walk.segments import Block, Given, Segment
from fairkern.walk.traversal import SampleNumbers, Traversal


class Way(enum.IntEnum):
    """Through the model as it was, or through what is left of it."""

    UNCUT = 0
    CUT = 1


class Sides:
    """What passes into every segment, on both ways, of the batches of several traversals that have begun.

    Segments and the model without them are called with `[number, way]`, int64: the number of a batch among those of all
    traversals, in a row. So a copy of a segment may be given what arrives on the other way. Both run as a model is run
    to be used, without gradients: what passes is what passes in a run of the whole.
    """

    def __init__(self, traversals: Sequence[Traversal], store: Boundaries) -> None:
        self.first, self.division = traversals[0], traversals[0].division
        self._store = store
        self._of = [(traversal, k) for traversal in traversals for k in range(len(traversal.known))]
        self._boundary: Tensor | None = None  # what passes out of the last segment in the call that is under way

    @property
    def numbers(self) -> range:
        """Of all batches; those of the first traversal come first."""
        return range(len(self._of))

    def loader(self, way: Way) -> SampleNumbers:
        """The batches of the first traversal, for a stage that runs on a segment."""
        return SampleNumbers([(_call(k, way), _NOTHING) for k in range(len(self.first.known))])

    @contextlib.contextmanager
    def segment(self, k: int) -> Iterator[Segment]:
        """Segment `k`, with its weights."""
        blocks = self.division.segments[k]
        start = sum(len(before) for before in self.division.segments[:k])

        def fetch(given: Tensor) -> tuple[int, Tensor, Sequence[Given]]:
            number, way = given.tolist()
            traversal, n = self._of[number]
            beside: Sequence[Given] = traversal.store.get(("given", n), device_of(segment))
            return number, self._passed(number, Way(way), k, device_of(segment)), beside[start : start + len(blocks)]

        with self.first.segment(k):
            segment = Segment(self.first.model, blocks, fetch)
            yield segment

    def run(self, segment: nn.Module, k: int, way: Way, numbers: Sequence[int]) -> None:
        """Keep what passes out of segment `k`, for these batches."""
        for number in numbers:
            self._store.put((way, k + 1, number), self._called(segment, number, way))

    def drop(self, k: int) -> None:
        """Forget what passes into segment `k`."""
        for number in self.numbers:
            for way in Way:
                self._store.drop((way, k, number))

    @contextlib.contextmanager
    def outside(self) -> Iterator[nn.Module]:
        """What runs outside of the segments, as a model of its own: what passed out of the last of them is put in the
        place of what it computes for it. Under the names of the model."""

        def fetch(given: Tensor, device: torch.device) -> Any:  # a function is the same in a copy of the module
            return self._beside(given, device)

        with self.first.outside(self._behind) as model:
            yield _Outside(model, fetch)

    def outputs(self, outside: nn.Module, way: Way, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """What the model returns, batch by batch."""
        for number in numbers:
            yield number, self._called(outside, number, way)

    def _called(self, model: nn.Module, number: int, way: Way) -> Any:
        traversal, n = self._of[number]
        with torch.no_grad(), seeded(traversal.settings.seed + n):
            return model(_call(number, way))

    def _passed(self, number: int, way: Way, k: int, device: torch.device) -> Tensor:
        """What passes into segment `k`; into the first it is the same on both ways."""
        traversal, n = self._of[number]
        if k == 0:
            return traversal.boundary(0, n, device)
        found: Tensor = self._store.get((way, k, number), device)
        return found

    def _beside(self, given: Tensor, device: torch.device) -> Any:
        """What the model is called with for a batch; what passes out of the last segment is at hand from then on."""
        number, way = given.tolist()
        traversal, n = self._of[number]
        self._boundary = self._passed(number, Way(way), len(self.division.segments), device)
        return traversal.call(n, device)

    def _behind(self, number: int, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In the places of blocks: only what passes out of the last one is looked at."""
        boundary = self._boundary
        assert boundary is not None
        last = number == len(self.first.blocks) - 1
        return block.output(boundary if last else torch.full_like(boundary, float("nan")))


class _Outside(nn.Module):
    """A model under the names of its own modules, called with what `fetch` turns into its inputs."""

    def __init__(self, model: nn.Module, fetch: Callable[[Tensor, torch.device], Any]) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self.__dict__["_inner"], self._fetch = model, fetch

    def forward(self, given: Tensor) -> Any:
        inner = self.__dict__["_inner"]
        return call_with(inner, own(self._fetch(given, device_of(inner))))


@contextlib.contextmanager
def used(*models: nn.Module) -> Iterator[None]:
    """Within, models compute as they do where they are used, and are left as they were."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(untouched(model))
            stack.enter_context(in_place(model))
            model.eval()
        yield


_NOTHING = torch.zeros(1, dtype=torch.int64, device="cpu")


def _call(number: int, way: Way) -> Tensor:
    return torch.tensor([number, way], dtype=torch.int64, device="cpu")
