"""How many bytes a scoring pass is going to take, and how a budget of them is shared out over passes."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairkern.capture.jobs import Job
from fairkern.capture.moments import Half
from fairkern.capture.points import Point
from fairkern.capture.residual import jobs
from fairkern.capture.settings import Settings
from fairkern.errors import InputError
from fairkern.types import UnitMap

SPARE = 128 * 2**20
"""Bytes of a batch's own pass (activations, gradients, what libraries take besides) that a budget does not count."""

_MATRICES = 4  # [n, n] in float64 that elimination holds of every reading, its moments made full among them


@dataclass(frozen=True)
class Prediction:
    """Made of the first batch's activations, before any sample is kept. Bytes.

    `per_sample`: a sample that has a class, of every unit the lesser of its positions and the projections.
    `layer`: the largest activation and its gradient, which one layer's sums may copy.
    `moments`: second moments, where they are asked for.
    `largest`: as `per_sample`, of the units that take most, which lie in one block.
    """

    per_sample: int
    layer: int
    moments: int
    largest: int = 0

    @classmethod
    def of(cls, heard: Iterable[tuple[Point, Tensor, int]], settings: Settings, moments: int) -> Prediction:
        """`heard`: a point, its activation with what has a class first, and where the units' dimension is then."""
        layer, blocks = 0, [0]
        for point, act, dim in heard:
            projected = settings.projections * (8 if act.dtype == torch.float64 else 4)
            by_token = point.side.whole and act.shape[-1] > 1  # `SampleStore` keeps projections
            for block in point.blocks if settings.class_of is not False else ():
                positions = act[0].numel() // act.shape[dim] * block.per_unit
                whole = positions * act.element_size()
                blocks.append(block.units * (projected if positions > settings.projections or by_token else whole))
            layer = max(layer, 2 * act.nbytes)
        return cls(sum(blocks), layer, moments, max(blocks))

    def bytes_of(self, samples: int) -> dict[str, int]:
        """For so many samples that enter, in one pass over the data."""
        return {"samples": self.per_sample * samples, "layer": self.layer, "moments": self.moments}


@dataclass(frozen=True)
class Trial:
    """What a part of the first batch has shown, before anything is kept."""

    prediction: Prediction
    samples: int  # that are likely to enter the U-score
    batch: int  # bytes of a batch's own pass
    held: int  # bytes of a forward pass of a batch that stands at a point, at most


class Shares:
    """Which second moments are summed up in which pass, and what is left there for class samples.

    Without a budget, and where one pass has room for all, everything is heard in the first. Else class samples go
    first, and second moments after them, those of as many jobs at a time as there is room for. Moments that are kept in
    memory have to be there all together in the end; others go when what is made of them is known.

    Raises InputError where that cannot be, with the least budget that would do.
    """

    def __init__(self, settings: Settings, units: UnitMap, widths: Mapping[str, int], trial: Trial | None) -> None:
        self._widths, self._budget = widths, settings.memory_budget
        self._units, everything = units, jobs(units) if widths else []
        self.first, self.rest = everything, list[list[Job]]()
        self.samples = self.later = self._budget  # for samples, in the first pass and in those after it
        self.reserved = self.enough = 0  # of the budget, for other things than samples; what a single pass takes
        if self._budget is None or trial is None:
            return
        in_memory = settings.keep_moments is True
        over = max(0, trial.batch - SPARE)
        samples, block = (size * trial.samples for size in (trial.prediction.per_sample, trial.prediction.largest))
        held, solving = self._halves(everything), max(map(self._solving, everything), default=0)
        alone = max((self._halves([job]) + self._solving(job) for job in everything), default=0)
        least = over + max(block, held + solving if in_memory else alone)
        if self._budget < least:
            raise InputError(self._too_small(least, over, block, held if in_memory else 0, solving, in_memory))
        room, at_once = self._budget - over, held + max(solving, samples)
        self.enough = over + at_once
        if at_once <= room:
            self.samples, self.reserved = room - held, over + held
            self.later = room - held if in_memory else room
            return
        self.samples, self.later, self.reserved = room, room, over
        rounds = [everything] if in_memory and everything else self._rounds(everything, room)
        self.first, self.rest = ([], rounds) if samples else (rounds[0], rounds[1:])

    @staticmethod
    def names(todo: Sequence[Job]) -> list[str]:
        """The taps whose moments these read, each once."""
        return list(dict.fromkeys(name for job in todo for name in job.moments))

    def _halves(self, todo: Sequence[Job]) -> int:
        return sum(Half.bytes_of(self._widths[name]) for name in self.names(todo))

    def _solving(self, job: Job) -> int:
        """What a job takes beside the halves of what it reads: matrices, and the weights that read them in float64."""
        taps = self._units.groups[job.group].taps
        if any(tap.side.whole for tap in taps):
            return 8 * 2 * max(self._widths[name] ** 2 for name in job.moments)
        sizes = [math.prod(self._units.shapes[axis.tensor]) for tap in taps for axis in tap.weights]
        return 8 * (_MATRICES * sum(self._widths[name] ** 2 for name in job.moments) + max(sizes, default=0))

    def _rounds(self, todo: Sequence[Job], room: int) -> list[list[Job]]:
        """In order, as many at a time as there is room for, with the elimination of one of them."""
        rounds: list[list[Job]] = []
        for job in todo:
            more = [*rounds[-1], job] if rounds else []
            if more and self._halves(more) + max(map(self._solving, more)) <= room:
                rounds[-1] = more
            else:
                rounds.append([job])
        return rounds

    def _too_small(self, least: int, over: int, block: int, held: int, solving: int, in_memory: bool) -> str:
        parts = []
        if over:
            parts.append(f"a batch takes {over:,} more than the {SPARE:,} that are not counted")
        if block:
            parts.append(f"the samples of one layer take {block:,}")
        if held:
            parts.append(f"the second moments that are kept take {held:,}")
        if solving:
            parts.append(f"the elimination of one layer takes {solving:,}")
        instead = (
            " (less, where second moments are not kept in memory: keep_moments='FOLDER' writes them to files)"
            if in_memory and held
            else ""
        )
        return (
            f"memory_budget={self._budget:,} bytes is too small: {', '.join(parts)}. The least that would do is "
            f"{least:,}{instead}"
        )


def give_back() -> None:
    """What the allocator holds free goes to the system, where it can: activations leave holes that no matrix fits."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def within(budget: int | None, doing: str) -> Iterator[None]:
    """Where there is a budget, an allocator that has nothing left is an InputError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if budget is None or not _ran_out(error):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        more = int(asked[1]) if asked else SPARE
        raise InputError(
            f"memory ran out while {doing}, within memory_budget={budget:,} bytes: the process may have less than "
            f"that beyond its weights, or later batches are larger than the first. Give it more, smaller batches, or "
            f"memory_budget={budget + more:,}"
        ) from error


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "can't start new thread", "std::bad_alloc"))
