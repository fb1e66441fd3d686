"""How many bytes a scoring pass is going to take, and how a budget of them is shared out over passes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairkern.capture.moments import Half
from fairkern.capture.points import Point
from fairkern.capture.residual import readings
from fairkern.capture.settings import Settings
from fairkern.errors import InputError
from fairkern.types import Side, UnitMap

SPARE = 128 * 2**20
"""Bytes of a batch's own pass (activations, gradients, what libraries take besides) that a budget does not count."""

_MATRICES = 8  # [n, n] in float64 that elimination holds of every reading, its moments among them


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


class Shares:
    """Which groups' second moments are summed up in which pass, and what is left there for class samples.

    Without a budget, and where one pass has room for all, everything is heard in the first. Else class samples go
    first, and second moments after them, as many groups at a time as there is room for. Moments that are kept in
    memory have to be there all together in the end; others go when the order of their group is known.

    Raises InputError where that cannot be, with the least budget that would do.
    """

    def __init__(self, settings: Settings, units: UnitMap, widths: Mapping[str, int], trial: Trial | None) -> None:
        self._widths, self._budget = widths, settings.memory_budget
        self._names = {g: readings(units, g) for g in units.scored} if widths else {}
        self._solving = {g: self._solved(units, g) for g in self._names}
        everything = list(self._names)
        self.first, self.rest = everything, list[list[int]]()
        self.samples = self.later = settings.memory_budget  # in the first pass, in those after it
        self.reserved = 0  # of the budget, for other things than samples
        if self._budget is None or trial is None:
            return
        in_memory = settings.keep_moments is True
        over = max(0, trial.batch - SPARE)
        samples, block = (size * trial.samples for size in (trial.prediction.per_sample, trial.prediction.largest))
        held, solving = self._halves(everything), max(self._solving.values(), default=0)
        alone = max((self._halves([g]) + self._solving[g] for g in everything), default=0)
        least = over + max(block, held + solving if in_memory else alone)
        if self._budget < least:
            raise InputError(self._too_small(least, over, block, held if in_memory else 0, alone, in_memory))
        room = self._budget - over
        self.enough = over + max(held + solving, held + samples)
        if max(held + solving, held + samples) <= room:
            self.samples, self.reserved = room - held, over + held
            self.later = room - held if in_memory else room
            return
        self.samples, self.later, self.reserved = room, room, over
        rounds = [everything] if in_memory else self._rounds(everything, room)
        self.first, self.rest = ([], rounds) if samples else (rounds[0] if rounds else [], rounds[1:])

    def names(self, groups: Sequence[int]) -> list[str]:
        """The taps whose moments these groups need, each once."""
        return list(dict.fromkeys(name for g in groups for name in self._names[g]))

    def _halves(self, groups: Sequence[int]) -> int:
        return sum(Half.bytes_of(self._widths[name]) for name in self.names(groups))

    def _rounds(self, groups: Sequence[int], room: int) -> list[list[int]]:
        """In order, as many at a time as there is room for with the elimination of one of them."""
        rounds: list[list[int]] = []
        for g in groups:
            last = [*rounds[-1], g] if rounds else [g]
            if rounds and self._halves(last) + max(self._solving[h] for h in last) <= room:
                rounds[-1] = last
            else:
                rounds.append([g])
        return rounds

    def _solved(self, units: UnitMap, g: int) -> int:
        """What the elimination of a group takes, beside the halves: all that one set of its units reads."""
        group, numbers = units.groups[g], 0
        for tap in {tap.name: tap for tap in group.taps}.values():
            names = readings(units, g, tap)
            once = group.sets > 1 and tap.side is Side.INNER
            square = [self._widths[name] ** 2 for name in names]
            if tap.side.whole:
                numbers = max(numbers, 2 * max(square))
            else:
                numbers += _MATRICES * (max(square) if once else sum(square))
        return 8 * numbers

    def _too_small(self, least: int, over: int, block: int, held: int, alone: int, in_memory: bool) -> str:
        parts = []
        if over:
            parts.append(f"a batch takes {over:,} more than the {SPARE:,} that are not counted")
        if block:
            parts.append(f"the samples of one layer {block:,}")
        if held:
            parts.append(f"the second moments that are kept {held:,}")
        if alone:
            parts.append(f"those of one layer with its elimination {alone:,}")
        instead = (
            " (less, where second moments are not kept in memory: keep_moments='FOLDER' writes them to files)"
            if in_memory and held
            else ""
        )
        return (
            f"memory_budget={self._budget:,} bytes is too small: {', '.join(parts)}. The least that would do is "
            f"{least:,}{instead}"
        )


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
