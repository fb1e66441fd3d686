"""Class samples of the experts of one layer, together: no zeros are kept for tokens that an expert was not given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairkern.capture.points import Block
from fairkern.capture.together import Family
from fairkern.ops import Placed, class_wasserstein, sliced_wasserstein


class ExpertSamples:
    """Of inner units a row for every token that an expert was given, [rows, units]; of whole experts, whose samples are
    projected as they come, [samples, experts, P]. `blocks`: one of each expert; `positions`: of a sample.
    """

    def __init__(self, blocks: tuple[Block, ...], positions: int, *, whole: bool) -> None:
        self.blocks, self.positions, self.whole = blocks, positions, whole
        self._numbers = {block: number for number, block in enumerate(blocks)}
        self._parts: list[Tensor] = []
        self._keys: list[Tensor] = []  # of each row, (sample · experts + expert) · positions + place
        self.samples = self.bytes = 0

    def add_rows(self, family: Family, taken: Tensor, count: int) -> None:
        """The rows of `count` more samples, `taken` [rows] saying which of these each is of, −1 if of none."""
        keep = family.anew & (taken >= 0)
        owners = self._order(family).index_select(0, family.owners)
        keys = ((taken + self.samples) * len(self.blocks) + owners) * self.positions + family.places
        rows = family.act()
        if not bool(keep.all()):
            rows, keys = rows[keep], keys[keep]
        self._keys.append(keys)
        self.bytes += keys.nbytes
        self._keep(rows, count)

    def add_projections(self, family: Family, made: Tensor) -> None:
        """The projections of more samples, [experts, samples, P]."""
        room = made.new_empty((made.shape[1], len(self.blocks), made.shape[2]))
        room[:, self._order(family)] = made.transpose(0, 1)
        self._keep(room, len(room))

    def distances(self, directions: Tensor | None, labels: Tensor, reduce: str, backend: str) -> Tensor:
        """U of every unit, [experts, units]; what was kept is let go. `directions`: of inner units."""
        values, placed = self._all()
        if placed is None:
            return class_wasserstein(values, labels, reduce, backend=backend)[:, None]
        assert directions is not None
        return sliced_wasserstein(values, directions, labels, reduce, backend=backend, placed=placed)

    def apart(self) -> Iterator[tuple[Block, Tensor]]:
        """Of each block by itself, [samples, units, positions] or of a whole expert [samples, 1, P]; what was kept is
        let go."""
        count = self.samples
        values, placed = self._all()
        for number, block in enumerate(self.blocks):
            if placed is None:
                yield block, values[:, number : number + 1]
            else:
                yield block, placed.dense(values, number, count, self.positions)

    def _order(self, family: Family) -> Tensor:
        """Where its points' blocks are among these: experts without a token may come last."""
        numbers = [self._numbers[point.blocks[0]] for point in family.points]
        return torch.tensor(numbers, dtype=torch.int64, device=family.samples.device)

    def _keep(self, part: Tensor, count: int) -> None:
        self._parts.append(part)
        self.samples += count
        self.bytes += part.nbytes

    def _all(self) -> tuple[Tensor, Placed | None]:
        values = torch.cat(self._parts)
        self._parts.clear()
        if self.whole:
            return values, None
        keys = torch.cat(self._keys)
        self._keys.clear()
        owners, places = keys // self.positions, keys % self.positions
        experts = len(self.blocks)
        return values, Placed(owners % experts, owners // experts, places, experts)
