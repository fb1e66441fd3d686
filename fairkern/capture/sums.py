"""Taylor sums and activation sums over a pass, in float64, added to as gradients come back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.points import Block, Point
from fairkern.capture.samples import by_group
from fairkern.capture.settings import Reduction
from fairkern.capture.together import Family
from fairkern.ops import TaylorSums, taylor_many
from fairkern.ranks import Ranks

AT_ONCE = ("cpu",)  # devices on which a gradient is summed when it comes


@dataclass(frozen=True)
class _Sums:
    """Running sums of one point."""

    whole: TaylorSums | None  # per position, from which every block of one position per unit takes its own
    blocks: dict[Block, TaylorSums]  # of several positions per unit
    activation: Tensor  # per position: that of `whole`, if there is one

    @property
    def signed(self) -> list[Tensor]:
        return [sums.signed for sums in (self.whole, *self.blocks.values()) if sums is not None]


class TaylorStore:
    """Per block the signed and per-sample Taylor sums, per point the sum of its activation.

    All running sums of a pass are one vector. On a CPU a gradient is summed when it comes, while it is in the cache; on
    a GPU gradients wait for each other, as many as they have room for, and layers share launches.

    `by_class`: the signed sums of every class besides, by plain products.
    """

    def __init__(self, points: Sequence[Point], backend: str, device: torch.device, *, by_class: bool = False) -> None:
        self._points, self._backend = points, backend
        self._by_class: dict[Point, dict[int, Tensor]] | None = {p: {} for p in points} if by_class else None
        self._labels = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._elements: dict[Point, int] = dict.fromkeys(points, 0)
        lengths = [length for p in points for length in _lengths(p)]
        self._flat = torch.zeros(sum(lengths), dtype=torch.float64, device=device)
        room = iter(self._flat.split(lengths))
        self._sums = {p: _sums(p, room) for p in points}
        self._weight, self._room = 1.0, 0
        self._reached: set[Point] = set()
        self._waiting: list[tuple[tuple[Tensor, Tensor, int], TaylorSums]] = []
        self._bytes = 0

    def begin(self, weight: float, room: int, labels: Tensor) -> None:
        """A batch of samples of these classes, whose gradients count `weight` times; on a GPU `room` bytes may wait."""
        self._weight, self._room, self._labels = weight, room, labels
        self._reached.clear()

    def add(self, point: Point, act: Tensor, grad: Tensor, dim: int) -> None:
        """`Σ act · ∂L/∂act` of one point for the batch under way; samples first, units along `dim`."""
        if grad.dtype != act.dtype:
            grad = grad.to(act.dtype)
        if self._by_class is not None:
            self._add_by_class(self._by_class[point], act, grad, dim)
        sums = self._sums[point]
        if self._bytes + grad.nbytes > self._room:
            self.flush()
        self._reached.add(point)
        self._elements[point] += act.numel() // act.shape[dim]
        if sums.whole is not None:
            self._waiting.append(((act, grad, dim), sums.whole))
        else:
            others = [d for d in range(act.ndim) if d != dim]
            sums.activation.add_(act.sum(others, dtype=None if act.dtype == torch.float64 else torch.float32))
        for block, running in sums.blocks.items():
            self._waiting.append(((block.view(act, dim), block.view(grad, dim), dim), running))
        self._bytes += grad.nbytes
        if act.device.type in AT_ONCE:
            self.flush()

    def add_rows(self, family: Family) -> None:
        """The same of experts whose rows are taken together: tokens that an expert was not given count as zeros."""
        if not family.points:
            return
        wide = torch.float64 if family.acts[0].dtype == torch.float64 else torch.float32
        act = family.act().to(wide)
        terms = act * family.grad().to(wide)
        (block,) = family.points[0].blocks
        if block.per_unit > 1:
            terms = terms.sum(1, keepdim=True)
        per_sample = family.by_sample(terms).double() * self._weight
        if not family.points[0].side.whole:
            act = act * family.anew[:, None]  # what is read of a token is the same however often
        new = zip(per_sample.sum(1), per_sample.abs().sum(1), family.by_point(act).double(), strict=True)
        running = []
        for point in family.points:
            sums = self._sums[point]
            units = sums.whole or next(iter(sums.blocks.values()))
            running += [units.signed, units.per_sample, sums.activation]
            self._reached.add(point)
            self._elements[point] += family.tokens
        torch._foreach_add_(running, [part for parts in new for part in parts])

    @property
    def by_rows(self) -> bool:
        """Whether `add_rows` may be called: nothing is kept class by class."""
        return self._by_class is None

    def _add_by_class(self, sums: dict[int, Tensor], act: Tensor, grad: Tensor, dim: int) -> None:
        """Per class [positions of the point], float64."""
        wide = torch.float64 if act.dtype == torch.float64 else torch.float32
        terms = act.to(wide) * grad.to(wide)
        terms = terms.movedim(dim, -1).flatten(1, -2) if act.ndim > 2 else terms
        per_sample = terms.sum(1, dtype=torch.float64) if act.ndim > 2 else terms.double()
        for label in self._labels.unique().tolist():
            mine = per_sample[(self._labels == label).to(act.device)].sum(0) * self._weight
            sums[label] = sums[label] + mine if label in sums else mine

    def flush(self) -> None:
        """Sum what waits."""
        if not self._waiting:
            return
        jobs, running = [job for job, _ in self._waiting], [sums for _, sums in self._waiting]
        self._waiting.clear()
        self._bytes = 0
        taylor_many(jobs, out=running, scale=self._weight, backend=self._backend)

    def reached(self) -> bool:
        """Whether any gradient came back in the batch under way."""
        return bool(self._reached)

    def heard(self, point: Point) -> bool:
        """Whether this point's gradient came back in the batch under way."""
        return point in self._reached

    def not_finite(self) -> tuple[Point, str] | None:
        """The point to blame in the batch under way, and for what; None if all sums are finite.

        An activation travels forwards, so the first bad one is to blame; a gradient backwards, so the last.
        """
        if math.isfinite(float(self._flat.sum())) or _finite(self._flat):  # a finite sum has finite terms
            return None
        for point in self._points:
            if not _finite(self._sums[point].activation):
                return point, "activations"
        return next(p for p in reversed(self._points) if not _finite(*self._sums[p].signed)), "gradients"

    def add_up(self, ranks: Ranks) -> None:
        """Over processes that have each heard some batches."""
        counts = [self._elements[p] for p in self._points]
        by_class = self._by_class or {}
        labels = _labels(by_class, ranks)
        nothing = {p: torch.zeros(p.length, dtype=torch.float64, device="cpu") for p in by_class}
        sums = [by_class[p].get(label, nothing[p]) for p, found in labels.items() for label in found]
        heard = torch.tensor(counts, dtype=torch.float64, device="cpu")
        flat, whole, *totals = ranks.summed("Taylor sums", [self._flat, heard, *sums])
        self._flat.copy_(flat)  # which all sums are views of
        self._elements = {p: int(n) for p, n in zip(self._points, whole, strict=True)}
        if self._by_class is not None:
            found = iter(totals)
            self._by_class = {p: {label: next(found) for label in own} for p, own in labels.items()}

    def reconstruction(self, reduction: Reduction, samples: int) -> dict[int, np.ndarray]:
        """R per group, float64 `[units]`: summed over a group's taps, per sample of the data."""
        scores = []
        for point in self._points:
            sums = self._sums[point]
            for block in point.blocks:
                own = sums.blocks.get(block, sums.whole)
                assert own is not None
                if self._by_class is not None:
                    classes = [block.view(total, 0) for _, total in sorted(self._by_class[point].items())]
                    totals = [t if block.per_unit == 1 else t.sum(1) for t in classes]
                    found = torch.stack(totals).abs().sum(0) if totals else self._flat.new_zeros(block.units)
                    scores.append((block, found.cpu().numpy() / samples))
                    continue
                chosen = own.signed.abs() if reduction is Reduction.SIGNED else own.per_sample
                if block not in sums.blocks and block.columns is not None:
                    chosen = chosen[block.columns.to(chosen.device)]
                scores.append((block, chosen.cpu().numpy() / samples))
        return by_group(scores, largest=False)

    def means(self) -> dict[str, np.ndarray]:
        """Mean activation per position, float64 `[length]`, of every point by name (where a gradient came back)."""
        return {
            p.name: self._sums[p].activation.cpu().numpy() / self._elements[p]
            for p in self._points
            if self._elements[p]
        }


def _labels(by_class: Mapping[Point, Mapping[int, Tensor]], ranks: Ranks) -> dict[Point, list[int]]:
    """Of every point the classes that any process has heard."""
    every = ranks.gathered("classes", [list(sums) for sums in by_class.values()])
    return {p: sorted({label for told in every for label in told[n]}) for n, p in enumerate(by_class)}


def _wide(point: Point) -> list[Block]:
    """Blocks whose units hold several positions each: they are summed by themselves."""
    return [block for block in point.blocks if block.per_unit > 1]


def _lengths(point: Point) -> list[int]:
    """Of the running sums, in the order in which `_sums` takes them."""
    own = 3 if len(_wide(point)) < len(point.blocks) else 1
    return [point.length] * own + [block.units for block in _wide(point) for _ in range(3)]


def _sums(point: Point, room: Iterator[Tensor]) -> _Sums:
    whole = None
    if len(_wide(point)) < len(point.blocks):
        whole = TaylorSums(next(room), next(room), next(room))
    activation = next(room) if whole is None else whole.activation
    return _Sums(whole, {b: TaylorSums(next(room), next(room), next(room)) for b in _wide(point)}, activation)


def _finite(*sums: Tensor) -> bool:
    return all(bool(torch.isfinite(total).all()) for total in sums)
