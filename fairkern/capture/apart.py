"""Joint moments of two models that are given different things, with one batch of each model at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import inputs_of
from fairkern.capture.joint import NO_BATCH, JointSums, identity
from fairkern.capture.listener import Listener
from fairkern.capture.lockstep import Around
from fairkern.capture.moments import offsets
from fairkern.capture.points import Point
from fairkern.errors import InputError
from fairkern.model.nested import Call, call_model
from fairkern.model.replacements import in_place
from fairkern.model.untouched import untouched
from fairkern.types import JointMoments, UnitMap


def joint_moments_apart(
    model: nn.Module,
    changed: nn.Module,
    given: tuple[Iterable[Any], Iterable[Any]],
    units: UnitMap,
    points: Sequence[Point],
    around: Around = contextlib.nullcontext,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[tuple[str, JointMoments | None]]:
    """What `joint_moments` gives, of a `model` and a `changed` one that are `given` different batches: part of a model,
    behind parts that have been cut already. Of each batch both have the same samples.

    Both loaders are iterated again for every point, and each pass ends once it has been there, so what is held is one
    batch on its way through one model; sums are those of `joint_moments`, in its order. (Of a weight that reads twice,
    and is changed at the second place, what lies behind the first has changed as well, as in the model that is cut.)

    Raises InputError (loaders that yield nothing, or not as many; batches that do not come to the same points).
    Cost: for every point that reads something new two forward passes to it and 2 n² multiply-adds per vector.
    """
    with contextlib.ExitStack() as stack:
        walks = []
        for net, entered in ((model, contextlib.nullcontext), (changed, around)):
            stack.enter_context(untouched(net))
            stack.enter_context(in_place(net))
            walks.append(_Pass(net, points, entered))
            stack.enter_context(walks[-1].attached())
        done: set[Point] = set()
        while len(done) < len(points):
            same, joint = _next(walks, given, units, done, kept)
            yield from ((point.name, joint) for point in same)
            done.update(same)
            del joint  # before the next are summed up


def _next(
    walks: Sequence[_Pass],
    given: tuple[Iterable[Any], Iterable[Any]],
    units: UnitMap,
    done: set[Point],
    kept: Mapping[str, Tensor],
) -> tuple[list[Point], JointMoments | None]:
    """The next point and those behind it that read the very same, with their moments; None where nothing differs."""
    sums: JointSums | None = None
    same, differs = list[Point](), False
    sides = zip_longest(
        *(inputs_of(loader, walk.model, singly=True) for walk, loader in zip(walks, given, strict=True))
    )
    for number, inputs in enumerate(sides):
        if any(call is None for call in inputs):
            raise InputError("the changed model is not given as many batches as the other: give both the same samples")
        reads = [walk.read(x, done, number) for walk, x in zip(walks, inputs, strict=True)]
        for points, _ in reads:
            first = same[:1] or points[:1]
            if points[:1] != first or not first:
                raise InputError(_apart(first + points[:1], walks[0].points, done))
        (came, act), (also, other) = reads
        if sums is None:
            left = kept.get(came[0].name)
            same = [p for p in came if _equal(kept.get(p.name), left)]
            sums = JointSums(came[0], offsets(came[0], units), left)
        same = [p for p in same if p in came and p in also]
        differs = differs or not torch.equal(act, other)
        sums.add(act, other)
    if sums is None:
        raise InputError(NO_BATCH)
    return same, sums.moments() if differs else None


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _apart(reached: Sequence[Point], points: Sequence[Point], done: set[Point]) -> str:
    if not reached:
        missing = next(p for p in points if p not in done)
        return f"the batches do not reach {missing.name}; use batches like those that were scored"
    names = " and ".join(sorted({p.name for p in reached}))
    return f"batches come to {names} one after the other; use batches like those scored"


class _There(BaseException):
    """The pass has come to what it was to read."""


class _Pass:
    """Forward passes of one model, without gradients, that end where they have read what they were to read."""

    def __init__(self, model: nn.Module, points: Sequence[Point], around: Around) -> None:
        self.model, self.points, self._around = model, points, around
        self._listener = Listener(model, points, gradients=False)
        self._listener.on_heard = self._arrive
        self._done: set[Point] = set()
        self._found: list[tuple[Point, Tensor, tuple[Any, ...]]] = []

    def attached(self) -> contextlib.AbstractContextManager[object]:
        return self._listener.attached()

    def read(self, inputs: Call, done: set[Point], seed: int) -> tuple[list[Point], Tensor]:
        """The first point that is not `done`, those behind it that read the very same, and what they read.

        No points, and nothing read, where the pass comes to none. What a forward draws at random goes by the seed.
        """
        self._done, self._found = done, []
        self._listener.reset(torch.device("cpu"))
        self.model.eval()  # a pass that ended early may have left another mode
        torch.set_rng_state(torch.Generator("cpu").manual_seed(seed).get_state())
        try:
            with torch.no_grad(), self._around(), self._listener.hearing():
                call_model(self.model, inputs)
        except _There:
            pass
        found, self._found = self._found, []
        act = found[0][1] if found else torch.empty(0, dtype=torch.float32, device="cpu")
        return [point for point, _, _ in found], act

    def _arrive(self, point: Point, act: Tensor) -> None:
        self._listener.forget(point)
        if point in self._done:
            return
        place = (point.dim, *identity(act))
        if self._found and self._found[0][2] != place:
            raise _There
        self._found.append((point, act, place))
