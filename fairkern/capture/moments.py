"""Second moments of what consumers read, and gradient powers: what compensation and second-order saliency come from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairkern.capture.points import Point
from fairkern.capture.sums import AT_ONCE
from fairkern.errors import NonFiniteError
from fairkern.ops.gram.packed import Packed
from fairkern.ops.gram.reference import holds_squares, less
from fairkern.ranks import Ranks
from fairkern.types import Moments, UnitMap

_LEAST = 2.0**-80  # sums of squares below it have lost what smaller units give, or all
_HELD = _LEAST, 2.0**126  # which is below what a sum in another order may overflow at


class Half(NamedTuple):
    """The moments of one tap, half of the symmetric matrix; all of it is made when asked for."""

    square: Packed  # Σ a aᵀ
    total: Tensor  # [n], Σ a
    count: int  # type: ignore[assignment]
    per_unit: int

    def whole(self) -> Moments:
        return Moments(self.square.full(), self.total, self.count, self.per_unit)

    @staticmethod
    def bytes_of(width: int) -> int:
        """What it takes for vectors of so many entries."""
        return 8 * (Packed.length(width) + width)


class MomentStore:
    """Per point `Σ a`, half of `Σ a aᵀ`, and how many vectors `a` were added, in float64 (float32 sums per batch, but
    of activations whose squares float32 does not hold: 1e19, or 1e-19).

    `summed`: only at these points are they summed up (all); the others wait for another pass.

    Sums are taken of what is left of `a` without the first batch's mean, which is put back in float64: where units
    hardly vary, what they vary by would drown in the rounding of their means.

    A vector holds every position of the tap's dimension. Where a unit is one channel that a flatten has spread over
    several positions, each of these offsets gives a vector of one position per unit: what mixes channels does not
    depend on the place. The positions of an attention head mean different things and stay apart.

    Beside them, per point, the gradient power: `Σ (∂L/∂a)²`.
    """

    def __init__(self, points: Iterable[Point], units: UnitMap, summed: Collection[str] | None = None) -> None:
        self._per_unit = {p: offsets(p, units) for p in points}
        self._summed = {p for p in self._per_unit if summed is None or p.name in summed}
        self._sums: dict[Point, Half] = {}
        self._powers: dict[Point, Tensor | float] = dict.fromkeys(self._per_unit, 0.0)
        self._elements: dict[Point, list[int]] = {p: [0, 0] for p in self._per_unit}  # heard, and with silent tokens
        self._shifts: dict[Point, Tensor] = {}
        self.batch = 0  # the number of the one under way, for errors
        self._told: set[Point] = set()  # points whose gradients float32 was seen to hold
        self._waiting: list[tuple[Point, Tensor, Tensor]] = []  # vectors, and whether float32 holds their squares

    @property
    def per_unit(self) -> dict[str, int]:
        """By tap name: how many positions of each unit are offsets of one channel."""
        return {point.name: count for point, count in self._per_unit.items()}

    @property
    def points(self) -> list[Point]:
        return list(self._per_unit)

    @property
    def halves_bytes(self) -> int:
        """What the sums of all points take."""
        return sum(map(Half.bytes_of, self.widths.values()))

    @property
    def widths(self) -> dict[str, int]:
        """By tap name: entries of a vector."""
        return {p.name: p.length // per_unit for p, per_unit in self._per_unit.items()}

    def add_gradient(self, point: Point, grad: Tensor, weight: int) -> None:
        """Of one batch at one point; `weight`: what makes it the gradient of a sum over samples."""
        if point not in self._per_unit:
            return
        dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(grad, dtype=dtype)
        if grad.device.type not in AT_ONCE and point in self._told:
            scaled: Tensor | float = weight * norm.double()  # it is not looked at, which would wait for the device
        else:
            known = float(norm)
            if _LEAST <= known * known < math.inf:
                self._told.add(point)
            else:
                norm = torch.linalg.vector_norm(grad, dtype=torch.float64)
                self._check(point, norm, "gradients")
                known = float(norm)
            scaled = weight * known
        self._powers[point] = self._powers[point] + scaled * scaled

    def add(self, point: Point, act: Tensor, dim: int, heard: int) -> None:
        """One batch at one point, units along `dim`; `heard` of the elements, the others are those of silent tokens.

        `settle` has to be called before the activation goes."""
        per_unit = self._per_unit.get(point)
        if per_unit is None:
            return
        self._elements[point][0] += heard
        self._elements[point][1] += act.numel()
        if point not in self._summed:
            return
        if per_unit > 1:
            act = act.unflatten(dim, (act.shape[dim] // per_unit, per_unit))
        vectors = act.movedim(dim, 0)
        shift = self._shift(point, vectors)
        if shift.dtype == torch.float64:
            self._put(point, less(vectors, shift))
        elif act.device.type in AT_ONCE:
            known = self._known(point, vectors)
            added = known.square.add_shifted(vectors, shift, known.total, _HELD)
            self._add_count(point, added)
            if added < vectors[0].numel():
                self._again(point, vectors.reshape(len(vectors), -1)[:, added:])
        else:  # it is not looked at yet, which would wait for the device
            shifted = less(vectors, shift)
            fits = holds_squares(shifted, _HELD)
            self._put(point, shifted, fits=fits)
            self._waiting.append((point, vectors, fits))

    def _known(self, point: Point, vectors: Tensor) -> Half:
        """The sums so far."""
        if point not in self._sums:
            self._sums[point] = self._nothing(point, vectors.device)
        return self._sums[point]

    def _put(self, point: Point, vectors: Tensor, fits: Tensor | None = None, *, counted: bool = False) -> None:
        """`vectors`: [length, …], less the first batch's mean; `counted`: their number is known already."""
        known = self._known(point, vectors)
        known.square.add_gram(vectors, fits, total=known.total)
        if not counted:
            self._add_count(point, vectors[0].numel())

    def _add_count(self, point: Point, count: int) -> None:
        self._sums[point] = self._sums[point]._replace(count=self._sums[point].count + count)

    def _again(self, point: Point, vectors: Tensor, *, counted: bool = False) -> None:
        """In float64, what float32 does not hold."""
        shift = self._shifts[point].to(vectors.device)
        if not bool(vectors.any()) and not bool(shift.any()):  # nothing to add
            if not counted:
                self._add_count(point, vectors[0].numel())
            return
        wide = less(vectors, shift.double())
        self._check(point, wide, "activations")
        self._put(point, wide, counted=counted)

    def settle(self) -> None:
        """Take again, in float64, what float32 did not hold; on a GPU this looks at all points at once."""
        held = torch.stack([fits for _, _, fits in self._waiting]).tolist() if self._waiting else []
        for (point, vectors, _), fits in zip(self._waiting, held, strict=True):
            if not fits:
                self._again(point, vectors, counted=True)
        self._waiting.clear()

    def _check(self, point: Point, values: Tensor, what: str) -> None:
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{what} at {point.name} are not finite in batch {self.batch}")

    @property
    def means_at_first(self) -> dict[str, Tensor]:
        """What is taken off at every point, once the first batch has come, on the CPU."""
        return {point.name: shift.cpu() for point, shift in self._shifts.items()}

    def take_off(self, means: Mapping[str, Tensor]) -> None:
        """These, which another process had from the first batch, before any comes here."""
        self._shifts = {p: means[p.name] for p in self._per_unit if p.name in means}

    def add_up(self, ranks: Ranks) -> None:
        """Over processes that have each heard some batches."""
        heard = [torch.tensor(elements, dtype=torch.float64, device="cpu") for elements in self._elements.values()]
        powers = [torch.tensor([float(p)], dtype=torch.float64, device="cpu") for p in self._powers.values()]
        counts = [self._sums[p].count if p in self._sums else 0 for p in self._per_unit]
        whole = ranks.summed("moments", [*heard, *powers, torch.tensor(counts, dtype=torch.float64, device="cpu")])
        n = len(self._per_unit)
        self._elements = {p: [int(k) for k in found] for p, found in zip(self._per_unit, whole[:n], strict=True)}
        self._powers = {p: float(found) for p, found in zip(self._per_unit, whole[n : 2 * n], strict=True)}
        for point, count in zip(self._per_unit, map(int, whole[-1]), strict=True):
            if count:
                own = self._sums.get(point) or self._nothing(point, torch.device("cpu"))
                flat, total = ranks.summed("moments", [own.square.flat, own.total])
                self._sums[point] = own._replace(square=Packed(own.square.n, flat), total=total, count=count)

    def _nothing(self, point: Point, device: torch.device) -> Half:
        width = self.widths[point.name]
        total = torch.zeros(width, dtype=torch.float64, device=device)
        return Half(Packed.zeros(width, device), total, 0, self._per_unit[point])

    def powers(self, samples: int) -> dict[str, float]:
        """By tap name: the gradient power per sample, as if all tokens were given to every expert."""
        found = {}
        for point, power in self._powers.items():
            if not math.isfinite(float(power)):  # on a GPU a later batch is not looked at when it comes
                raise NonFiniteError(f"squares of gradients at {point.name} are not finite in one of the batches")
            heard, whole = self._elements[point]
            found[point.name] = float(power) / samples * (whole / heard if heard else 1.0)
        return found

    def _shift(self, point: Point, act: Tensor) -> Tensor:
        """The mean of the first vectors that came, [length], where `act` is, in the dtype that products are in."""
        wide = act.dtype if act.dtype == torch.float64 else torch.float32
        shift = self._shifts.get(point)
        if shift is None:
            shift = act.reshape(len(act), -1).mean(1, dtype=wide).nan_to_num(0.0, 0.0, 0.0)
            self._shifts[point] = shift
        return shift.to(act.device, wide)

    def take(self, name: str) -> Half:
        """The moments of a tap, on the CPU; they are gone from here."""
        point = next(p for p in self._sums if p.name == name)
        square, total, count, per_unit = self._sums.pop(point)
        shift = self._shifts.pop(point).double()
        square.add_outer(shift, total + (count / 2) * shift)
        total.add_(shift, alpha=count)
        return Half(Packed(square.n, square.flat.cpu()), total.cpu(), count, per_unit)


class StateMeans:
    """Per point the sum over the vectors [vectors, n] that were read there, in float64."""

    def __init__(self, points: Iterable[Point]) -> None:
        self.points = list(points)
        self._sums: dict[Point, tuple[Tensor, int]] = {}

    def add(self, point: Point, act: Tensor) -> None:
        """One batch at one point."""
        total, count = act.double().sum(0), len(act)
        known = self._sums.get(point)
        self._sums[point] = (total, count) if known is None else (known[0] + total, known[1] + count)

    def add_up(self, ranks: Ranks) -> None:
        """Over processes that have each heard some batches."""
        nothing = {p: torch.zeros(p.length, dtype=torch.float64, device="cpu") for p in self.points}
        counts = [self._sums[p][1] if p in self._sums else 0 for p in self.points]
        sums = [self._sums[p][0] if p in self._sums else nothing[p] for p in self.points]
        *totals, whole = ranks.summed("means", [*sums, torch.tensor(counts, dtype=torch.float64, device="cpu")])
        self._sums = {p: (total, int(n)) for p, total, n in zip(self.points, totals, whole, strict=True)}

    def means(self) -> dict[str, np.ndarray]:
        """By tap name, float64 `[length]`, where anything was read."""
        return {p.name: total.cpu().numpy() / count for p, (total, count) in self._sums.items() if count}


def squares_are_held(vectors: Tensor) -> bool:
    """Whether float32 holds their sums of squares, and of products: by one norm of all, where that decides; the largest
    row's lies between it and what it would be if all rows were as long. (Norms of rows whose numbers do not lie side by
    side take many times as long.)
    """
    least, most = _HELD
    norm = float(torch.linalg.vector_norm(vectors))
    surely = 2 * (least * len(vectors)) ** 0.5 <= norm < most**0.5 / 2  # a factor of 2 is more than norms are off
    return surely or bool(holds_squares(vectors, _HELD))


def offsets(point: Point, units: UnitMap) -> int:
    """How many positions of each unit are offsets of one channel: 1 unless one group of channels fills the point.

    What a whole expert gives is one unit as well: only its power counts.
    """
    if point.side.whole:
        return point.length
    if len(point.blocks) == 1 and point.blocks[0].columns is None:
        (block,) = point.blocks
        kinds = {units.groups[g].kind for g, _ in block.members}
        if kinds == {"channel"}:
            return block.per_unit
    return 1
