"""Experts of one layer, taken together: rows stay rows, of which those of each expert and sample are added up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fairkern.capture.layout import Layout
from fairkern.capture.listener import Listener
from fairkern.capture.points import Point


@dataclass(frozen=True, eq=False)
class Family:
    """Points of experts alike, which were given rows of the same tokens, and whose units are the whole of each row.

    `acts` [rows, n] and `samples`, `places` (int64 [rows]: which sample a row's token belongs to, and which of its
    tokens it is), point after point; `tokens`: how many there are in all, of so many samples (`count`).
    """

    points: tuple[Point, ...]
    acts: tuple[Tensor, ...]
    samples: Tensor
    places: Tensor
    tokens: int
    count: int
    grads: dict[Point, Tensor] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[int]:
        """How many each point has."""
        return [len(act) for act in self.acts]

    @cached_property
    def given(self) -> int:
        """How many points have rows."""
        return sum(rows > 0 for rows in self.rows)

    @property
    def complete(self) -> bool:
        """Whether the gradients of all rows have come back."""
        return len(self.grads) == self.given

    def heard(self) -> Family:
        """Those whose gradients have come back, or that were given no token."""
        kept = [k for k, p in enumerate(self.points) if p in self.grads or not self.rows[k]]
        samples, places = (list(of.split(self.rows)) for of in (self.samples, self.places))
        return Family(
            tuple(self.points[k] for k in kept),
            tuple(self.acts[k] for k in kept),
            torch.cat([samples[k] for k in kept] or [self.samples[:0]]),
            torch.cat([places[k] for k in kept] or [self.places[:0]]),
            self.tokens,
            self.count,
            self.grads,
        )

    @cached_property
    def owners(self) -> Tensor:
        """The number of the point that each row belongs to, int64 [rows]."""
        number = torch.tensor(self.rows, dtype=torch.int64, device=self.samples.device)
        return torch.arange(len(self.rows), device=number.device).repeat_interleave(number)

    @cached_property
    def anew(self) -> Tensor:
        """Of each row whether its point was not given its token before, bool [rows]."""
        tokens = self.owners * self.tokens + self.samples * (self.tokens // self.count) + self.places
        order = tokens.argsort(stable=True)
        found = torch.ones_like(tokens, dtype=torch.bool)
        found[order[1:]] = tokens[order].diff() != 0
        return found

    def act(self) -> Tensor:
        """All rows, [rows, n]."""
        return torch.cat(self.acts)

    def grad(self) -> Tensor:
        """Of all rows, where they have come back."""
        return torch.cat([self.grads.get(p, act) for p, act in zip(self.points, self.acts, strict=True)])

    @cached_property
    def _bags(self) -> tuple[Tensor, Tensor]:
        """Rows in the order of points and samples, and how many each of these has."""
        bags = self.owners * self.count + self.samples
        return bags.argsort(stable=True), torch.bincount(bags, minlength=len(self.points) * self.count)

    def by_sample(self, rows: Tensor) -> Tensor:
        """Sums of [rows, m] over the rows of each point and sample, in order: [points, samples, m]."""
        order, sizes = self._bags
        return _bags(rows, order, sizes).view(len(self.points), self.count, -1)

    def by_point(self, rows: Tensor) -> Tensor:
        """Sums of [rows, m] over the rows of each point: [points, m]."""
        sizes = torch.tensor(self.rows, dtype=torch.int64, device=rows.device)
        return _bags(rows, torch.arange(len(rows), device=rows.device), sizes)


def families(
    listener: Listener, layouts: Mapping[Point, Layout], points: Collection[Point], *, alone: bool
) -> list[Family]:
    """What was heard at experts, of these points, as far as it can be taken together, or each `alone`, which gives the
    same; each is in one family at most."""
    alike: dict[tuple[object, ...], list[Point]] = {}
    for point, act in listener.heard.items():
        tokens = listener.rows(point)
        if point not in points or tokens is None or act.ndim != 2 or layouts[point].dim != 0 or not _whole(point):
            continue
        carrier = listener.carriers[point]
        key: tuple[object, ...] = (
            carrier.data_ptr(),
            carrier.shape,
            act.dtype,
            act.shape[1],
            point.side,
            layouts[point],
        )
        alike.setdefault((*key, point) if alone else key, []).append(point)
    return [_family(listener, points, layouts[points[0]]) for points in alike.values()]


def _whole(point: Point) -> bool:
    """Whether the units of a point are its positions, in order, or one unit that is all of them."""
    return len(point.blocks) == 1 and point.blocks[0].columns is None and 1 in (
        point.blocks[0].per_unit, point.blocks[0].units
    )  # fmt: skip


def _family(listener: Listener, points: list[Point], layout: Layout) -> Family:
    total = len(listener.carriers[points[0]])
    count = total // layout.fold
    found = [tokens for p in points if (tokens := listener.rows(p)) is not None]
    tokens = torch.cat(found)
    samples, places = (
        (tokens % count, tokens // count) if layout.interleaved else (tokens // layout.fold, tokens % layout.fold)
    )
    return Family(tuple(points), tuple(listener.heard[p] for p in points), samples, places, total, count)


def _bags(rows: Tensor, order: Tensor, sizes: Tensor) -> Tensor:
    """Sums of rows in this order, the first `sizes[0]` of them, and so on: [bags, m]."""
    if not len(order):
        return rows.new_zeros((len(sizes), rows.shape[1]))
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return F.embedding_bag(order, rows, ends, mode="sum", include_last_offset=True)
