"""What the trace knows of one tensor: what each of its dimensions is.

Every dimension of every tensor seen by the trace is one of four things: *tracked* (an int32 vector with a
node id per position), *constant* (its positions mean nothing to any unit: batch, space, tokens), *uniform*
(filled or expanded: every position holds the same value, so its length may follow whatever it meets), or *zero*
(uniform, and the tensor holds zeros: a weight that contracts it contributes nothing).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class Fixed(enum.Enum):
    """State of a dimension without nodes."""

    CONSTANT = "constant"
    UNIFORM = "uniform"
    ZERO = "zero"


CONSTANT, UNIFORM, ZERO = Fixed.CONSTANT, Fixed.UNIFORM, Fixed.ZERO

Dim = np.ndarray | Fixed


@dataclass(frozen=True, eq=False)
class Source:
    """The parameter or buffer that a tensor is, rearranged and cast: dimension `i` is its `dims[i]`. A tuple: several
    of them in one, in order; None: a part of one, or of size 1."""

    name: str
    dims: tuple[int | tuple[int, ...] | None, ...]


@dataclass(frozen=True, eq=False)
class Track:
    """What the trace knows of one tensor. Compared by identity: an in-place write makes a new track.

    `mixed`: nodes that the tensor's values run over, and how; they stay if anything reads the tensor.
    """

    sizes: tuple[int, ...]
    dims: tuple[Dim, ...]
    source: Source | None = None
    mixed: tuple[tuple[Dim, str], ...] = ()
    indexes: np.ndarray | None = None  # its values are places among these nodes

    @classmethod
    def constant(cls, sizes: Sequence[int]) -> Track:
        return cls(tuple(sizes), (CONSTANT,) * len(sizes))

    @classmethod
    def uniform(cls, sizes: Sequence[int]) -> Track:
        return cls(tuple(sizes), (UNIFORM,) * len(sizes))

    @property
    def tracked(self) -> bool:
        return any(isinstance(d, np.ndarray) for d in self.dims)
