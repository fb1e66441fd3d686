"""Which samples of every class enter the U-score; or which places, where every token or pixel has a class."""

from __future__ import annotations

import math
from collections import Counter
from math import prod

import torch
from torch import Tensor

from fairkern.capture.layout import Layout
from fairkern.capture.points import Point
from fairkern.errors import InputError

Grid = tuple[int, ...]  # places of a sample; (): the samples themselves have classes


class Selection:
    """The first `per_class` rows of every class, in the loader's order: the same for any batch size.

    A negative label is of no class.
    """

    def __init__(self, per_class: int) -> None:
        self.per_class = per_class
        self.counts: Counter[int] = Counter()
        self._heard = 0  # rows that have a class, taken or not
        self._labels: list[Tensor] = []
        self._owners: list[Tensor] = []

    def take(self, labels: Tensor, owner: int = 0) -> Tensor:
        """Rows of this batch to keep, int64 on the CPU; counts them as taken by the process that has the batch."""
        rows = []
        for row, label in enumerate(labels.tolist()):
            self._heard += label >= 0
            if label >= 0 and self.counts[label] < self.per_class:
                self.counts[label] += 1
                rows.append(row)
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        self._labels.append(labels[index])
        self._owners.append(torch.full_like(index, owner))
        return index

    @property
    def owners(self) -> Tensor:
        """Which process has each of the rows that were taken, int64 on the CPU."""
        return torch.cat([torch.zeros(0, dtype=torch.int64, device="cpu"), *self._owners])

    @property
    def labels(self) -> Tensor:
        """Of all rows that were taken, int64 on the CPU."""
        return torch.cat([torch.zeros(0, dtype=torch.int64, device="cpu"), *self._labels])

    def expected(self, done: float) -> int:
        """Rows that are likely to be taken in all, once this share of the batches has come: what classes that are not
        full yet have is taken to grow with it."""
        return sum(min(self.per_class, math.ceil(count / done)) for count in self.counts.values())

    def at_most(self, done: float) -> int:
        """Rows that there will be in all, however few of the classes so far are rare: as many as have a class, up to
        what these classes hold."""
        return min(math.ceil(self._heard / done), self.per_class * len(self.counts))

    def several(self, labels: Tensor) -> Tensor:
        """Which of these are labels of classes with two rows or more."""
        alone = [label for label, count in self.counts.items() if count < 2]
        return ~torch.isin(labels, torch.tensor(alone, dtype=torch.int64, device=labels.device))

    @property
    def compared(self) -> int:
        """Classes with two rows or more."""
        return sum(count > 1 for count in self.counts.values())

    def check(self, places: str = "") -> None:
        """Raises InputError unless there are two classes with two rows each, and of samples none with a single one.

        `places`: the rows are those.
        """
        found = self.compared if places else len(self.counts)
        if found < 2:
            raise InputError(
                f"the loader yields {found} class{'es' if found != 1 else ''}{places}; the U-score compares classes "
                "and needs two or more (pass class_of= to say which class a sample belongs to, or class_of=False)"
            )
        if places:
            return
        label, count = min(self.counts.items(), key=lambda item: (item[1], item[0]))
        if count < 2:
            raise InputError(
                f"class {label} has one sample; the U-score needs two or more of every class (give more samples, or "
                "class_of=False to do without U)"
            )


class Choice:
    """What a pass keeps of its batches: samples, or places on every grid that an activation has them on."""

    def __init__(self, per_class: int) -> None:
        self._per_class = per_class
        self._grids: dict[Grid, Selection] = {}
        self._owner, self._hears = 0, False
        self._before: list[tuple[Tensor, int]] = []  # batches of others, until grids are known
        self._batch = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._rows: dict[Grid, Tensor] = {}
        self.done = 0.5  # share of the batches that have come; as many again, where that is not known

    def begin(self, labels: Tensor, done: float = 0.5, owner: int = 0) -> None:
        """The labels of the next batch, [samples] or [samples, places …]; with it, so much of the data is `done`."""
        self._batch, self.done, self._owner, self._hears = labels, done, owner, True
        self._rows = {}
        self.rows(tuple(labels.shape[1:]))

    def pass_by(self, labels: Tensor, owner: int) -> None:
        """The labels of a batch that another process hears: its rows count, on every grid that there is.

        Which grids there are shows when the first batch is heard here.
        """
        hears = self._hears
        self.begin(labels, self.done, owner)
        for grid in self._grids:
            self.rows(grid)
        self._hears = hears
        if not hears:
            self._before.append((labels, owner))

    def seen(self, point: Point, act: Tensor, dim: int, layout: Layout) -> tuple[Tensor, int, Grid]:
        """An activation, samples first, as rows that have a class, where its units lie then, and its grid."""
        if self._batch.ndim == 1:
            return act, dim, ()
        places, grid = _as_places(point, act, dim, layout, tuple(self._batch.shape[1:]))
        return places, 1, grid

    def rows(self, grid: Grid) -> Tensor:
        """Which rows of this batch to keep."""
        if grid not in self._rows:
            self._rows[grid] = self.of(grid).take(_on_grid(self._batch, grid), self._owner)
        return self._rows[grid]

    @property
    def of_places(self) -> bool:
        """Whether places were labelled, not samples."""
        return () not in self._grids or len(self._grids) > 1

    def of(self, grid: Grid) -> Selection:
        """What was kept on this grid so far."""
        if grid not in self._grids:
            found = self._grids[grid] = Selection(self._per_class)
            for labels, owner in self._before:
                found.take(_on_grid(labels, grid), owner)
        return self._grids[grid]

    @property
    def counts(self) -> Counter[int]:
        """Rows per class, as they were labelled."""
        return next(iter(self._grids.values())).counts if self._grids else Counter()

    @property
    def expected(self) -> int:
        """Rows that are likely to be taken in all, as they were labelled."""
        return next(iter(self._grids.values())).expected(self.done) if self._grids else 0

    def check(self) -> None:
        """Raises InputError unless there are two classes with two samples (places, as they were labelled) each."""
        grid, selection = next(iter(self._grids.items()), ((), Selection(self._per_class)))
        selection.check(f" of two places or more on a grid of {list(grid)}" if grid else "")


def _as_places(point: Point, act: Tensor, dim: int, layout: Layout, wanted: Grid) -> tuple[Tensor, Grid]:
    """An activation with units along `dim` as [samples · places, units], and its grid of places.

    As many places as are labelled are taken to be those, in the same order, and so many as a coarser grid of the same
    proportions has are taken to be that; a single one is the sample.
    Raises InputError where they are not those of the labels: folded into windows, or of other dimensions.
    """
    sizes = tuple(n for d, n in enumerate(act.shape) if d not in (0, dim))
    long = tuple(n for n in sizes if n != 1)
    windows = layout.fold > 1 and len(long) > 1
    grid = _grid(sizes, long, wanted)
    if windows or grid is None:
        how = "are folded into windows" if windows else f"have the shape {list(sizes)}"
        raise InputError(
            f"class labels are given for places {list(wanted)} of every sample; those of the activation at "
            f"{point.name} {how}: give one label per sample"
        )
    return act.movedim(dim, -1).reshape(-1, act.shape[dim]), grid


def _grid(sizes: Grid, long: Grid, wanted: Grid) -> Grid | None:
    if prod(long) == prod(wanted):
        return wanted
    if not long:
        return ()
    return next((grid for grid in (long, sizes, _unflattened(long, wanted)) if len(grid) == len(wanted)), None)


def _unflattened(long: Grid, wanted: Grid) -> Grid:
    """The coarser grid, of the proportions of `wanted`, that so many places in a row are; empty where there is none."""
    by = (prod(wanted) / long[0]) ** (1 / len(wanted)) if len(long) == 1 else 0.0
    grid = tuple(round(n / by) for n in wanted) if by > 1 else ()
    return (
        grid
        if prod(grid) == prod(long) and all(abs(m * by - n) < 1e-6 * n for m, n in zip(grid, wanted, strict=True))
        else ()
    )


def _on_grid(labels: Tensor, grid: Grid) -> Tensor:
    """Labels [samples, places …] at the places of another grid, as [samples · places]: the nearest one; along what is
    one place there, the class of most of the places."""
    pooled = [d for d in range(1, labels.ndim) if not grid or (grid[d - 1] == 1 and labels.shape[d] > 1)]
    for d, n in enumerate(grid, start=1):
        length = labels.shape[d]
        if length != n and d not in pooled:
            nearest = (torch.arange(n, device=labels.device) * 2 + 1) * length // (2 * n)
            labels = labels.index_select(d, nearest)
    if pooled:
        labels = _most(labels.movedim(pooled, list(range(-len(pooled), 0))).flatten(-len(pooled)))
    return labels.reshape(-1)


def _most(labels: Tensor) -> Tensor:
    """The class that most labels along the last dimension are of, of several the first; negative where none has one."""
    rows = labels.reshape(-1, labels.shape[-1])
    classes = int(rows.max()) + 1 if rows.numel() else 0
    if classes <= 0:
        return labels.new_full(labels.shape[:-1], -1)
    found = []
    for row in rows:  # classes may be many, and places too: no table of both
        counts = row[row >= 0].bincount(minlength=1)
        found.append(int(counts.argmax()) if int(counts.max()) else -1)
    return torch.tensor(found, dtype=torch.int64, device=labels.device).view(labels.shape[:-1])
