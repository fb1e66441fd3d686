"""What the trace knows of one tensor: what each of its dimensions is.

Every dimension of every tensor seen by the trace is one of four things: *tracked* (an int32 vector with a
node id per position), *constant* (its positions mean nothing to any unit: batch, space, tokens), *uniform*
(filled or expanded: every position holds the same value, so its length may follow whatever it meets), or *zero*
(uniform, and the tensor holds zeros: a weight that contracts it contributes nothing). All that one uniform dimension
meets has its length, and is cut alike (`graph.meet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fairkern.axes.unless import Unless
from fairkern.types import Axis


@dataclass(frozen=True, eq=False)
class Fixed:
    """A dimension without nodes."""


@dataclass(frozen=True, eq=False)
class Uniform(Fixed):
    """One whose positions hold the same value, or (`zero`) zeros.

    `origin`: where it was made; the same for dimensions that have their length from there.
    """

    zero: bool = False
    origin: object = field(default_factory=object)

    @property
    def filled(self) -> Uniform:
        """A dimension of this length that may hold anything but zeros."""
        return Uniform(origin=self.origin) if self.zero else self

    @property
    def another(self) -> Uniform:
        """A dimension of the same values and another length."""
        return Uniform(self.zero)


CONSTANT = Fixed()

Dim = np.ndarray | Fixed


@dataclass(frozen=True, eq=False)
class Source:
    """The parameters or buffers that a tensor's values come from: dimension `i` is the axis `axes[i]` (a
    tuple: several in one, in order; None: a part of one, or of size 1).

    Nothing that an input changes takes part, but for a factor (see `Track`). `learned`: a parameter. `silent`: where a
    slice along one of the axes is zero, so is the tensor's. `same`: the values are that parameter's own, rearranged and
    cast. `part`: those of one position of a further dimension.
    """

    name: str
    axes: tuple[Axis | tuple[Axis, ...] | None, ...]
    learned: bool = True
    silent: bool = True
    same: bool = True
    part: bool = False

    def at(self, places: Sequence[int | tuple[int, ...] | None]) -> Source:
        """The source of a tensor whose dimension `i` is dimension `places[i]` of this one (a tuple: several in one;
        None: no one)."""
        return replace(self, axes=tuple(map(self._at, places)))

    def _at(self, place: int | tuple[int, ...] | None) -> Axis | tuple[Axis, ...] | None:
        if not isinstance(place, tuple):
            return None if place is None else self.axes[place]
        found = tuple(axis for i in place if isinstance(axis := self.axes[i], Axis))
        return found if len(found) == len(place) else None


@dataclass(frozen=True, eq=False)
class Track:
    """What the trace knows of one tensor. Compared by identity: an in-place write makes a new track.

    `factor`: a parameter that activations are multiplied by: the values are zero where it is, as those of a weight that
    is modulated for each sample. `mixed`: nodes that the tensor's values run over, how, and when that lapses; they stay
    if anything reads the tensor.
    """

    sizes: tuple[int, ...]
    dims: tuple[Dim, ...]
    source: Source | None = None
    factor: Source | None = None
    mixed: tuple[tuple[Dim, str, Unless], ...] = ()
    indexes: np.ndarray | None = None  # its values are places among these nodes

    @classmethod
    def constant(cls, sizes: Sequence[int]) -> Track:
        return cls(tuple(sizes), (CONSTANT,) * len(sizes))

    @classmethod
    def uniform(cls, sizes: Sequence[int]) -> Track:
        return cls(tuple(sizes), tuple(Uniform() for _ in sizes))

    @classmethod
    def zeros(cls, sizes: Sequence[int]) -> Track:
        return cls(tuple(sizes), tuple(Uniform(zero=True) for _ in sizes))

    @property
    def silenced(self) -> Source | None:
        """The parameter that silences the tensor's slices, if it is of any or a multiple of one."""
        source = self.source or self.factor
        return source if source is not None and source.silent else None

    @property
    def held(self) -> tuple[bool, ...]:
        """Per dimension, whether units may lie along it."""
        return tuple(d is not CONSTANT for d in self.dims)

    @property
    def tracked(self) -> bool:
        return any(isinstance(d, np.ndarray) for d in self.dims)
