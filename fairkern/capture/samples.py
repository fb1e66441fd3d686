"""Class samples for the U-score: their activations or projections, and how much memory they may take."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.classes import Choice, Grid
from fairkern.capture.expert_samples import ExpertSamples
from fairkern.capture.growing import GrowingRows
from fairkern.capture.layout import Layout
from fairkern.capture.points import Block, Point
from fairkern.capture.settings import Settings
from fairkern.capture.together import Family
from fairkern.errors import InputError
from fairkern.ops import class_wasserstein, directions, project, sliced_wasserstein


class SampleStore:
    """Class samples per block: the activations themselves `[samples, units, D]`, or their P projections if D > P.

    Of whole experts always the projections (see `_by_token`).

    With a budget, the block that takes most is dropped before the sum would exceed it and is named in `dropped`:
    another pass collects it. `reserved`: so much of the budget is for other things.
    """

    def __init__(self, points: Iterable[Point], choice: Choice, settings: Settings, reserved: int = 0) -> None:
        self._choice = choice
        self._projections, self._seed = settings.projections, settings.seed
        self._budget, self._reserved = settings.memory_budget, reserved
        tight = self._budget is not None
        self._backend, self._pairs = settings.backend, settings.pairs.value
        self._ranks = settings.ranks
        self._rows: dict[Block, GrowingRows] = {block: GrowingRows(tight) for p in points for block in p.blocks}
        self._blocks = list(self._rows)
        # Where memory is counted block by block, or samples are sent from one process to another, each stays by itself.
        self._joins = self._budget is None and not self._ranks.several
        self._together: dict[Block, ExpertSamples] = {}
        self._device: torch.device | None = None
        self._positions: dict[Block, int] = {}
        self._projected: set[Block] = set()
        self._grid: dict[Block, Grid] = {}
        self._directions: dict[tuple[int, torch.device, bool], Tensor] = {}
        self.dropped: list[Block] = []
        self.peak = self._total = self._held = 0  # bytes: at most, with the room for more, of rows

    def add(self, point: Point, act: Tensor, dim: int, layout: Layout) -> None:
        """The chosen samples of an activation (samples first, units along `dim`), for every block of this point."""
        blocks = [block for block in point.blocks if block in self._rows]
        if not blocks:
            return
        self._device = act.device
        act, dim, grid = self._choice.seen(point, act, dim, layout)
        rows = self._choice.rows(grid)
        self._take_apart(blocks)
        for block in blocks:
            if self._grid.setdefault(block, grid) != grid:
                raise InputError(f"the activation at {point.name} has its places on another grid in another batch")
        if not rows.numel():
            return
        expect = self._expected(grid, act.device)
        some = None if len(rows) == len(act) else rows.to(act.device)
        for block in blocks:
            if block.columns is None:  # no copy: the samples are chosen as they are kept
                x, chosen = block.view(act, dim), some
            else:
                x, chosen = block.view(act if some is None else act.index_select(0, some), dim), None
            x = x.movedim(dim, 1)
            positions = x.shape[2:].numel()
            self._same_positions(block, positions, point)
            by_token = point.side.whole and x.shape[-1] > 1
            projected = positions > self._projections or by_token
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            shape, dtype = (block.units, self._projections if projected else positions), wide if projected else x.dtype
            count = len(x) if chosen is None else len(chosen)
            new = self._extended(block, count, shape, dtype, x.device, expect, point)
            if new is not None:
                self._keep(block, x, chosen, new, projected, by_token)
        self.peak = max(self.peak, self._held)

    def _expected(self, grid: Grid, device: torch.device) -> int:
        """Rows to have room for. On a CPU memory that nobody has written takes nothing, and rows that are moved are
        written anew: there, unless memory is counted, for as many as there may be."""
        chosen, done = self._choice.of(grid), self._choice.done
        rows = chosen.at_most(done) if self._budget is None and device.type == "cpu" else chosen.expected(done)
        return -(-rows // self._ranks.size)

    def _same_positions(self, block: Block, positions: int, point: Point) -> None:
        if self._positions.setdefault(block, positions) != positions:
            raise InputError(
                f"the activation at {point.name} holds another number of positions in another batch: "
                "units are compared at inputs of one size; or do without U (class_of=False)"
            )

    def _extended(
        self,
        block: Block,
        count: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        expect: int,
        point: Point,
    ) -> Tensor | None:
        """Where `count` more rows of a block are to be written; None where the block was dropped."""
        room = self._fitted(block, count, shape[0] * shape[1] * dtype.itemsize, expect, point)
        if block not in self._rows:
            return None
        before = self._rows[block].bytes
        new = self._rows[block].extend(count, shape, dtype, device, room)
        self._total += self._rows[block].bytes - before
        self._held += new.nbytes
        return new

    def add_rows(self, family: Family) -> None:
        """The same of experts whose rows are taken together, which are zero at all tokens that they were not given.
        Samples have classes, not places."""
        if not any(point.blocks[0] in self._rows for point in family.points):  # no U, or that of another pass
            return
        rows, act = self._choice.rows(()), family.acts[0]
        expect = self._expected((), act.device)
        self._device = act.device
        for point in family.points:
            self._grid.setdefault(point.blocks[0], ())
        if not len(rows):
            return
        (block,) = family.points[0].blocks
        tokens, width = family.tokens // family.count, act.shape[1]
        by_token = family.points[0].side.whole and width > 1
        positions = tokens * block.per_unit
        projected = positions > self._projections or by_token
        wide = torch.float64 if act.dtype == torch.float64 else torch.float32
        shape, dtype = (block.units, self._projections if projected else positions), wide if projected else act.dtype
        kept = torch.full((family.count,), -1, dtype=torch.int64, device=act.device)
        kept[rows.to(act.device)] = torch.arange(len(rows), device=act.device)
        made = self._signed(family, tokens).index_select(1, rows.to(act.device)) if by_token else None
        joined = self._joined(family, positions, by_token or not (projected or family.points[0].side.whole))
        if joined is not None:
            before = joined.bytes
            if made is None:
                joined.add_rows(family, kept[family.samples], len(rows))
            else:
                joined.add_projections(family, made)
            self._held += joined.bytes - before
            self.peak = max(self.peak, self._held)
            return
        taken, places, anew = (of.split(family.rows) for of in (kept[family.samples], family.places, family.anew))
        for n, point in enumerate(family.points):
            (block,) = point.blocks
            if block not in self._rows:
                continue
            self._same_positions(block, positions, point)
            new = self._extended(block, len(rows), shape, dtype, act.device, expect, point)
            if new is None:
                continue
            if projected:
                self._projected.add(block)
            if made is not None:
                new.copy_(made[n, :, None])
                continue
            some = taken[n] >= 0
            if not point.side.whole:
                some &= anew[n]
            own, at, x = (of if bool(some.all()) else of[some] for of in (taken[n], places[n], family.acts[n]))
            if projected:
                self._project_rows(x, own, self._drawn(positions, x.device)[at], new)
            else:
                new.zero_().transpose(1, 2).index_put_((own, at), x, accumulate=point.side.whole)
        self.peak = max(self.peak, self._held)

    def _joined(self, family: Family, positions: int, joins: bool) -> ExpertSamples | None:
        """Where the samples of a family are kept together; None where each block keeps its own."""
        blocks = tuple(point.blocks[0] for point in family.points)
        for point, block in zip(family.points, blocks, strict=True):
            self._same_positions(block, positions, point)
        found = self._together.get(blocks[0])
        if found is not None and set(found.blocks) == set(blocks):
            return found
        self._take_apart(blocks)
        held = [self._rows.get(block) for block in blocks]
        if not (joins and self._joins) or any(rows is None or rows.count for rows in held):
            return None
        made = ExpertSamples(blocks, positions, whole=family.points[0].side.whole)
        self._together.update(dict.fromkeys(blocks, made))
        return made

    def _take_apart(self, blocks: Iterable[Block]) -> None:
        """These blocks' samples, and those of others that are kept with them, go to each by itself: not all of them
        were heard together."""
        for layer in {found for block in blocks if (found := self._together.get(block)) is not None}:
            self._held -= layer.bytes
            count = layer.samples
            for block, values in layer.apart():
                del self._together[block]
                new = self._rows[block].extend(count, values.shape[1:], values.dtype, values.device, count)
                new.copy_(values)
                self._total += self._rows[block].bytes
                self._held += new.nbytes
                if layer.whole:
                    self._projected.add(block)

    @staticmethod
    def _project_rows(x: Tensor, own: Tensor, drawn: Tensor, room: Tensor) -> None:
        """Projections of samples `own` of whose places some are heard, x: [rows, units], in directions `drawn` there,
        [rows, P]. A product for each sample: the same whatever else is in the batch."""
        order, sizes = own.argsort(stable=True), own.bincount(minlength=len(room)).tolist()
        parts = (of.to(room.dtype)[order].split(sizes) for of in (x, drawn))
        for n, (some, along) in enumerate(zip(*parts, strict=True)):
            torch.mm(some.T, along, out=room[n])

    def _signed(self, family: Family, tokens: int) -> Tensor:
        """What `_by_token` gives, [points, samples, P], of rows."""
        act = family.act()
        across = self._drawn(act.shape[1], act.device)
        signs = self._drawn(tokens, act.device, of_tokens=True).sign()
        projected = project(act[:, None], across)[:, 0] if len(act) else act.new_zeros((0, self._projections))
        return family.by_sample(projected * signs[family.places]) / tokens**0.5

    def _keep(
        self, block: Block, x: Tensor, chosen: Tensor | None, room: Tensor, projected: bool, by_token: bool
    ) -> None:
        """`x`: [samples, units, positions …], of which the `chosen` go into `room`, or all."""
        if not projected:
            taken = x if chosen is None else x.index_select(0, chosen)
            room.view(taken.shape).copy_(taken)
            return
        self._projected.add(block)
        if by_token:
            room.copy_(self._by_token(x if chosen is None else x.index_select(0, chosen)))
        else:
            project(x, self._drawn(x.shape[2:].numel(), x.device), rows=chosen, out=room)

    def _by_token(self, x: Tensor) -> Tensor:
        """Projections [samples, 1, P] of what a whole expert adds, [samples, 1, tokens …, width].

        A direction is the product of one across the width and a sign per token: it is as long as other directions
        and as random, but tokens that the expert was not given cost nothing, and there is no matrix of tokens · width.
        """
        x = x.reshape(len(x), -1, x.shape[-1])
        samples, tokens, width = x.shape
        across = self._drawn(width, x.device)
        signs = self._drawn(tokens, x.device, of_tokens=True).sign()
        given = x.ne(0).any(-1).reshape(-1).nonzero()[:, 0]
        projected = project(x.reshape(-1, 1, width), across, rows=given)[:, 0]
        placed = projected.new_zeros((samples * tokens, self._projections)).index_copy_(0, given, projected)
        return (placed.view(samples, tokens, -1) * signs).sum(1, keepdim=True) / tokens**0.5

    def _drawn(self, positions: int, device: torch.device, of_tokens: bool = False) -> Tensor:
        key = (positions, device, of_tokens)
        if key not in self._directions:
            self._directions[key] = directions(positions, self._projections, self._seed + of_tokens).to(device)
        return self._directions[key]

    def _fitted(self, block: Block, count: int, size: int, expect: int, point: Point) -> int:
        """How many rows of `size` bytes a block is to have room for, before `count` more come; where there is not
        enough, room that holds nothing yet is given back first, then the largest blocks are dropped, or this one."""
        kept = self._rows[block]
        room = kept.room(count, expect)
        if self._budget is None or self._total - kept.bytes + room * size <= self._budget:
            return room
        for rows in self._rows.values():
            rows.trim()
        self._total = sum(rows.bytes for rows in self._rows.values())
        room = kept.count + count
        wanted = room * size
        while self._total - kept.bytes + wanted > self._budget:
            if len(self._rows) == 1:
                raise InputError(
                    f"memory_budget is {self._budget + self._reserved:,} bytes; the samples of {point.name} alone take "
                    f"{wanted:,}, and other things {self._reserved:,}. Give {wanted + self._reserved:,} or more, fewer "
                    "samples_per_class or fewer projections"
                )
            sizes = {b: wanted if b is block else rows.bytes for b, rows in self._rows.items()}
            largest = max(sizes, key=lambda b: sizes[b])
            gone = self._rows.pop(largest)
            self._total -= gone.bytes
            self._held -= gone.held
            self.dropped.append(largest)
            if largest is block:
                break
        return room

    def utilization(self) -> dict[Block, np.ndarray]:
        """U per unit, float64 `[units]`, of every block that was kept; frees the samples as it goes.

        Not of blocks whose places are of fewer than two classes, where others' are of more.
        """
        if self._ranks.several:
            self._bring_together()
        if self._choice.of_places:
            self._take_apart(self._blocks)
        scores = self._of_layers()
        by_grid = {grid: self._choice.of(grid).labels for grid in set(self._grid.values())}
        for block in list(self._rows):
            values, grid = self._rows.pop(block).values, self._grid[block]
            labels = by_grid[grid] = by_grid[grid].to(values.device)
            if self._choice.of_places:  # a class of a single place is compared with none
                if self._choice.of(grid).compared < 2:
                    continue
                several = self._choice.of(grid).several(labels)
                values, labels = values[several], labels[several]
            positions = self._positions[block]
            if positions == 1 or block in self._projected:
                distances = class_wasserstein(values, labels, self._pairs, backend=self._backend)
            else:
                drawn = self._drawn(positions, values.device)
                distances = sliced_wasserstein(values, drawn, labels, self._pairs, backend=self._backend)
            scores[block] = distances.double().cpu().numpy()
        every = self._ranks.gathered("U-scores", {n: scores[b] for n, b in enumerate(self._blocks) if b in scores})
        return {self._blocks[n]: values for part in every for n, values in part.items()}

    def _of_layers(self) -> dict[Block, np.ndarray]:
        """U of those whose samples are kept together."""
        scores: dict[Block, np.ndarray] = {}
        for layer in dict.fromkeys(self._together.values()):
            device = self._device if self._device is not None else torch.device("cpu")
            drawn = None if layer.whole else self._drawn(layer.positions, device)
            labels = self._choice.of(()).labels.to(device)
            found = layer.distances(drawn, labels, self._pairs, self._backend).double().cpu().numpy()
            for block, values in zip(layer.blocks, found, strict=True):
                del self._rows[block]
                scores[block] = values
        self._together.clear()
        return scores

    def _bring_together(self) -> None:
        """Of samples that several processes have heard, those of every block to one of them, as a single process would
        have them. What one of them had to drop waits for another pass on all."""
        own = {
            n: (kept.form, self._grid[block], self._positions[block], block in self._projected)
            for n, block in enumerate(self._blocks)
            if (kept := self._rows.get(block)) is not None and kept.count
        }
        left = [n for n, block in enumerate(self._blocks) if block in self.dropped]
        every = self._ranks.gathered("class samples", (own, left, self.peak))
        self.dropped = [self._blocks[n] for n in sorted({n for _, dropped, _ in every for n in dropped})]
        self.peak = max(peak for _, _, peak in every)
        known = {n: said for told, _, _ in every for n, said in told.items() if self._blocks[n] not in self.dropped}
        if self.dropped and not known:
            raise InputError(
                f"memory_budget is {self._budget} bytes, and there is no block of units whose class samples all "
                "processes keep within it: give a larger budget, fewer samples_per_class or fewer projections"
            )
        numbers = sorted(known)
        costs = [len(self._choice.of(known[n][1]).labels) * math.prod(known[n][0][0]) for n in numbers]
        hearing = [rank for rank, (told, _, _) in enumerate(every) if told]
        owners = self._ranks.dealt(costs, hearing)
        held, self._rows = self._rows, {}
        for n, owner in zip(numbers, owners, strict=True):
            rows = held.pop(self._blocks[n], GrowingRows())
            parts = self._ranks.brought("class samples", owner, rows.values if rows.count else None)
            if owner == self._ranks.rank:
                self._put_together(self._blocks[n], parts, *known[n])

    def _put_together(
        self,
        block: Block,
        parts: Sequence[Tensor | None],
        form: tuple[torch.Size, torch.dtype],
        grid: Grid,
        positions: int,
        projected: bool,
    ) -> None:
        """Rows of one block, as every process has heard some, in the loader's order."""
        owners = self._choice.of(grid).owners
        device = self._device if self._device is not None else torch.device("cpu")
        self._rows[block] = whole = GrowingRows()
        room = whole.extend(len(owners), *form, device, len(owners))
        for rank, part in enumerate(parts):
            if part is not None:
                room[(owners == rank).to(device)] = part.to(device)
        self._grid[block], self._positions[block] = grid, positions
        if projected:
            self._projected.add(block)


def by_group(scores: Iterable[tuple[Block, np.ndarray]], *, largest: bool) -> dict[int, np.ndarray]:
    """Block scores per group, part after part; over several taps of a part the largest or the sum."""
    parts: dict[int, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for block, values in scores:
        for group, places in block.members:
            parts[group][block.part].append(values[places])
    merge = np.max if largest else np.sum
    return {g: np.concatenate([merge(p[i], axis=0) for i in sorted(p)]) for g, p in parts.items()}
