"""Moments of the same points in two models at once: what consumers read before and after earlier layers were cut."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fairkern.capture.batches import inputs_of
from fairkern.capture.chosen import Chosen
from fairkern.capture.listed import ListedExperts
from fairkern.capture.listener import Listener
from fairkern.capture.lockstep import Around, Walk, in_step
from fairkern.capture.moments import offsets, squares_are_held
from fairkern.capture.points import Point, hidden_points, points_of
from fairkern.errors import InputError
from fairkern.model.nested import call_model
from fairkern.model.replacements import in_place
from fairkern.model.untouched import untouched
from fairkern.ops.gram.packed import Packed
from fairkern.ranks import ALONE, Ranks
from fairkern.types import JointMoments, Side, Tap, UnitMap

_ROWS = 1024  # of a matrix that are made at a time
_NUMBERS = 1 << 18  # of an activation that a CPU sums at a time: the sums read them several times
NO_BATCH = "the loader yields no batch; sequential compensation needs one that can be iterated again"


def reading_points(model: nn.Module, loader: Iterable[Any], units: UnitMap, others: Sequence[Tap]) -> list[Point]:
    """Where consumers read, in the order in which a forward pass comes there: the groups' taps and those of `others`.

    Without those that read other rows in another model (experts, what comes after a choice of boxes or queries), and
    those of `others` whose module runs more than once or not at all. Cost: one forward pass over the first batch.
    """
    beside = [Point(tap.name, tap.sites, tap.side, tap.dim, tap.length, ()) for tap in others]
    listener = Listener(model, [*points_of(units, Side.INPUT), *hidden_points(units), *beside], gradients=False)
    listed = ListedExperts(model, listener.points, listener.hear)
    listed.following = True
    with untouched(model), in_place(model), torch.no_grad(), listener.attached(), listed.attached():
        model.eval()
        inputs = next(inputs_of(loader, model, singly=True), None)
        if inputs is None:
            raise InputError(NO_BATCH)
        chosen = Chosen(model, inputs)
        with listener.hearing(), listed.followed(), chosen:
            call_model(model, inputs)
        twice = {p for p in beside if listener.calls(p.sites[0].module, p.side) > 1}
        heard = [p for p, act in listener.heard.items() if listed.rows(p, act) is None and not chosen.holds(act)]
        return [p for p in heard if p not in twice]


def joint_moments(
    model: nn.Module,
    changed: nn.Module,
    loader: Iterable[Any],
    units: UnitMap,
    points: Sequence[Point],
    around: Around = contextlib.nullcontext,
    ranks: Ranks = ALONE,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[tuple[str, JointMoments | None]]:
    """Name by name in the order of the forward pass: sums over `loader` of `a` in `model` and `b` in `changed`; of `b`
    at the positions that are `kept` of a name, where that is said.

    `changed` has the same modules and positions; its weights may be changed between two points, for the rest of the
    pass. None: nothing differs there. Where the next layer reads the very same tensors (queries, keys and values), the
    object is the same. `around` is entered for every pass of `changed`, in its thread.
    Both models are left as they were otherwise. Of several processes each walks with some of the batches; all get sums
    over those of all, point by point.

    Raises InputError (a loader that yields nothing; batches that do not come to the same points).
    Cost: two forward passes and 2 n² multiply-adds per vector; memory: all batches' activations at one depth, twice.
    """
    with contextlib.ExitStack() as stack:
        for net in (model, changed):
            stack.enter_context(untouched(net))
            stack.enter_context(in_place(net))
            net.eval()
        number, inputs = -1, []
        for number, x in enumerate(inputs_of(loader, model, singly=True)):
            if ranks.own(number):
                inputs.append((number, x))
        if number < 0:
            raise InputError(NO_BATCH)
        walks = [stack.enter_context(Walk(model, x, points, contextlib.nullcontext, i)) for i, x in inputs]
        walks += [stack.enter_context(Walk(changed, x, points, around, i)) for i, x in inputs]
        per_unit = {p: offsets(p, units) for p in points}
        seen, last = set(), _Sums(ranks)
        try:
            for point, acts in _together(walks, points, ranks):
                seen.add(point)
                yield point.name, last.of(point, acts, per_unit[point], kept.get(point.name))
        except LookupError as error:
            raise InputError(f"batches come to {error} one after the other; use batches like those scored") from None
        missing = next((p for p in points if p not in seen), None)
        if missing is not None:
            raise InputError(f"the batches do not reach {missing.name}; use batches like those that were scored")


def _together(walks: Sequence[Walk], points: Sequence[Point], ranks: Ranks) -> Iterator[tuple[Point, list[Tensor]]]:
    """Where passes stand, and what they read there. Those of several processes stand at the same point; one that has no
    batch is told of it. Raises LookupError as `in_step`."""
    steps, named = in_step(walks), {point.name: point for point in points}
    walking = ranks.gathered("the walks", bool(walks))
    while True:
        here = next(steps, [])
        told = ranks.gathered("a point", here[0][0].name if here else "")
        names = {name for name, walks_there in zip(told, walking, strict=True) if walks_there}
        if len(names) > 1:
            raise LookupError(" and ".join(sorted(names - {""})))
        name = names.pop()
        if not name:
            return
        yield named[name], [act for _, act in here]


class _Sums:
    """Joint moments of the point that was met last, and what they were taken from: without keeping that alive."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._read: list[tuple[Any, ...]] = []
        self._joint: JointMoments | None = None

    def of(self, point: Point, acts: Sequence[Tensor], per_unit: int, kept: Tensor | None) -> JointMoments | None:
        """`acts`: those of all batches in the model as it was, then those in the changed one."""
        of = None if kept is None else tuple(kept.tolist())
        read = [(point.dim, per_unit, of, *identity(act)) for act in acts]
        if not all(self._ranks.gathered("what is read", read == self._read)):
            half = len(acts) // 2
            sums = JointSums(point, per_unit, kept)
            self._read, self._joint = read, _joint(sums, acts[:half], acts[half:], self._ranks)
        return self._joint


def identity(act: Tensor) -> tuple[Any, ...]:
    """Equal for views of the same values in the same order; nothing that comes later is taken for them."""
    place = (act.storage_offset(), act.dtype, act.shape, act.stride())
    return StorageWeakRef(act.untyped_storage()), act._version, *place


def _joint(sums: JointSums, before: Sequence[Tensor], now: Sequence[Tensor], ranks: Ranks) -> JointMoments | None:
    if all(ranks.gathered("what differs", all(torch.equal(a, b) for a, b in zip(before, now, strict=True)))):
        return None
    for act, changed in zip(before, now, strict=True):
        sums.add(act, changed)
    if ranks.several:
        sums.add_up(ranks)
    return sums.moments()


class JointSums:
    """`Σ a bᵀ`, `Σ b bᵀ`, `Σ a`, `Σ b` at one point, batch after batch: float32 products of some vectors, float64 sums.
    `kept`: the positions of `b` that they are of, where a unit is one position; None: all.

    Memory: one matrix and half of the other in float64, and beside them some rows and some vectors.
    """

    def __init__(self, point: Point, per_unit: int, kept: Tensor | None = None) -> None:
        self._point, self._per_unit = point, per_unit
        self._kept = kept if per_unit == 1 else None
        self._sums: list[Tensor] = []
        self._count = 0

    def add(self, act: Tensor, changed: Tensor) -> None:
        before, now = (_units_first(self._point, x, self._per_unit) for x in (act, changed))
        if not self._sums:
            self._sums = self._zeros(act.device)
        left = None if self._kept is None else self._kept.to(act.device)
        step = max(1, _NUMBERS * before.shape[1] // max(1, before.numel())) if act.is_cpu else before.shape[1]
        for some, others in zip(before.split(step, 1), now.split(step, 1), strict=True):
            self._add(_vectors(some), _vectors(others if left is None else others.index_select(0, left)))

    def _add(self, a: Tensor, b: Tensor) -> None:
        """Of [n, vectors] and [k, vectors]."""
        if a.dtype != torch.float64 and not all(squares_are_held(x) for x in (a, b)):
            a, b = a.double(), b.double()
        cross, half, total, other = self._sums
        total.add_(a.sum(1))
        other.add_(b.sum(1))
        for start in range(0, len(a), _ROWS):  # the sum is in another dtype than the products
            cross[start : start + _ROWS].add_(a[start : start + _ROWS] @ b.T)
        Packed(len(b), half).add_gram(b)
        self._count += a.shape[1]

    def _zeros(self, device: torch.device) -> list[Tensor]:
        n = self._point.length // self._per_unit
        k = n if self._kept is None else len(self._kept)
        shapes = ((n, k), (Packed.length(k),), (n,), (k,))
        return [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]

    def add_up(self, ranks: Ranks) -> None:
        """Over processes that have each heard some batches, or none."""
        sums = self._sums or self._zeros(torch.device("cpu"))
        count = torch.tensor(self._count, dtype=torch.float64, device="cpu")
        *self._sums, whole = ranks.summed("joint moments", [*sums, count])
        self._count = int(whole)

    def moments(self) -> JointMoments:
        cross, half, total, other = (t.cpu() for t in self._sums)
        gram = Packed(len(other), half).full()
        return JointMoments(cross, gram, total, other, self._count, self._per_unit, self._kept)


def _units_first(point: Point, act: Tensor, per_unit: int) -> Tensor:
    """[n, …] of the point's positions, with two dimensions at least; offsets of one channel give a vector each."""
    act = act.movedim(point.dim, 0)
    if per_unit > 1:
        act = act.unflatten(0, (len(act) // per_unit, per_unit))
    return act if act.ndim > 1 else act.unsqueeze(1)


def _vectors(act: Tensor) -> Tensor:
    """[n, vectors], in a dtype that products are summed in."""
    flat = act.reshape(len(act), -1)
    return flat if flat.dtype == torch.float64 else flat.float()
