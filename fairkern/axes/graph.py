"""What a trace collects: nodes (axis positions), the edges between them, and who reads or freezes them.

Every dimension of every tensor seen by the trace is one of four things: *tracked* (an int32 vector with a
node id per position), *constant* (its positions mean nothing to any unit: batch, space, tokens), *uniform*
(filled or expanded: every position holds the same value, so its length may follow whatever it meets), or *zero*
(uniform, and the tensor holds zeros: a weight that contracts it contributes nothing).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fairkern.types import Axis, CallSite, Side


class Fixed(enum.Enum):
    """State of a dimension without nodes."""

    CONSTANT = "constant"
    UNIFORM = "uniform"
    ZERO = "zero"


CONSTANT, UNIFORM, ZERO = Fixed.CONSTANT, Fixed.UNIFORM, Fixed.ZERO

Dim = np.ndarray | Fixed


@dataclass(frozen=True, eq=False)
class Source:
    """The parameter or buffer that a tensor is, rearranged and cast: dimension `i` is its `dims[i]` (None: made of
    several, or of size 1)."""

    name: str
    dims: tuple[int | None, ...]


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


@dataclass(frozen=True, eq=False)
class Factors:
    """A view that splits or merges tracked positions: `flat[i, j, …]` stands for `factors[0][i], factors[1][j], …`.

    Which factor carries the unit is decided when all is known (`units.py`).
    """

    flat: np.ndarray  # [n0, n1, …]
    factors: tuple[np.ndarray, ...]  # [n0], [n1], …


@dataclass(frozen=True, eq=False)
class Contraction:
    """A weight that contracts an activation along tracked positions: a consumer."""

    weight: Axis
    nodes: np.ndarray  # along the activation's dimension
    activation: Track | None  # the calling module's first input, where the consumer can be tapped
    dim: int
    site: CallSite
    op: str
    training: bool = False  # seen in train mode only: nothing to tap
    inner: bool = False  # a recurrent layer reads its own unit, which is scored where it leaves
    side: Side = Side.INPUT  # of the tap
    still: bool = False  # no input changes the activation: no sample tells its units apart, so nothing to tap

    @property
    def untapped(self) -> bool:
        return self.training or self.still or (self.inner and self.side is not Side.HIDDEN)


@dataclass(frozen=True, eq=False)
class Production:
    """A weight whose axis becomes a dimension of its module's output."""

    weight: Axis
    nodes: np.ndarray
    dim: int
    site: CallSite


@dataclass
class Graph:
    """Collects what rules say. Node ids are dense from 0."""

    nodes: int = 0
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    freezes: list[tuple[np.ndarray, str]] = field(default_factory=list)
    # those of the freezes that do not hold for experts: where a router's logit is −inf, the expert is as good as gone
    unless_routed: set[int] = field(default_factory=set)
    # those of the freezes that fall where a proof shows that the code follows the cut by itself, or by its size sites
    unless_proven: set[int] = field(default_factory=set)
    # those of the freezes that hold in any case: whoever called the model sees these positions
    outputs: set[int] = field(default_factory=set)
    # nodes among which the k largest are looked for -> k
    ranked: list[tuple[np.ndarray, int]] = field(default_factory=list)
    factors: list[Factors] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    productions: list[Production] = field(default_factory=list)
    flops: list[tuple[float, tuple[np.ndarray, ...]]] = field(default_factory=list)
    # weight of a grouped convolution -> nodes of its input channels, of its groups (None: they stay), of its outputs
    grouped: dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]] = field(default_factory=dict)
    # module of a group norm -> nodes of its channels, of its groups
    normed: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # module without tensors that holds its input's number of channels -> their nodes
    features: dict[str, np.ndarray] = field(default_factory=dict)
    # innermost module of a reshape, expand or split -> nodes of the sizes that it was given
    sites: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def new(self, n: int) -> np.ndarray:
        """`n` fresh nodes."""
        start = self.nodes
        self.nodes += n
        return np.arange(start, self.nodes, dtype=np.int32)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Position by position: `a[i]` and `b[i]` are cut together."""
        if a is not b:
            self.edges.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, dim: Dim, reason: str) -> None:
        """These positions stay, and why. The first reason recorded is the one that is told."""
        if isinstance(dim, np.ndarray) and dim.size:
            self.freezes.append((dim.reshape(-1), reason))

    def read(self, track: Track) -> None:
        """Something depends on the values of a tensor: what they run over stays."""
        for dim, reason in track.mixed:
            self.freeze(dim, reason)

    def freeze_unless_routed(self, dim: Dim, reason: str) -> None:
        """These positions stay, unless they are experts that a router can leave out."""
        self._freeze_marked(self.unless_routed, dim, reason)

    def freeze_unless_proven(self, dim: Dim, reason: str) -> None:
        """These positions stay, unless a proof shows that they can go."""
        self._freeze_marked(self.unless_proven, dim, reason)

    def freeze_output(self, dim: Dim) -> None:
        """These positions stay, whatever a proof may show."""
        self._freeze_marked(self.outputs, dim, "is a dimension of the model's output")

    def _freeze_marked(self, marks: set[int], dim: Dim, reason: str) -> None:
        marks.add(len(self.freezes))
        self.freeze(dim, reason)
        marks.discard(len(self.freezes))  # nothing was frozen

    def frozen(self, n: int, reason: str) -> np.ndarray:
        """`n` fresh nodes that stay."""
        nodes = self.new(n)
        self.freeze(nodes, reason)
        return nodes

    def meet(self, a: Dim, b: Dim, reason: str) -> Dim:
        """Two dimensions of equal length that must stay equal; returns what the common dimension is."""
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            self.join(a, b)
            return a
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            tracked, other = (a, b) if isinstance(a, np.ndarray) else (b, a)
            if other is CONSTANT:
                self.freeze(tracked, reason)
            return tracked
        return CONSTANT if CONSTANT in (a, b) else UNIFORM

    def merge(self, sizes: Sequence[int], dims: Sequence[Dim]) -> Dim:
        """The single dimension that these, in order, flatten to."""
        kept = [(n, d) for n, d in zip(sizes, dims, strict=True) if n != 1]
        if not kept:
            return CONSTANT
        if len(kept) == 1:
            return kept[0][1]
        tracked = [i for i, (_, d) in enumerate(kept) if isinstance(d, np.ndarray)]
        if not tracked:
            first = kept[0][1]
            return (
                CONSTANT if CONSTANT in [d for _, d in kept] else first if all(d is first for _, d in kept) else UNIFORM
            )
        shape = tuple(n for n, _ in kept)
        if len(tracked) == 1:
            (i,) = tracked
            ids = kept[i][1]
            assert isinstance(ids, np.ndarray)
            along = ids.reshape([-1 if k == i else 1 for k in range(len(shape))])
            return np.ascontiguousarray(np.broadcast_to(along, shape)).reshape(-1)
        inner = self.new(int(np.prod([shape[i] for i in tracked]))).reshape([shape[i] for i in tracked])
        self.factors.append(Factors(inner, tuple(d for _, d in kept if isinstance(d, np.ndarray))))
        spread = inner.reshape([n if k in tracked else 1 for k, n in enumerate(shape)])
        return np.ascontiguousarray(np.broadcast_to(spread, shape)).reshape(-1)

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """The dimensions that one dimension becomes when it is viewed as `sizes`."""
        if isinstance(dim, Fixed):
            return [dim if n != 1 else CONSTANT for n in sizes]
        real = [i for i, n in enumerate(sizes) if n != 1]
        out: list[Dim] = [CONSTANT] * len(sizes)
        if len(real) <= 1:
            for i in real:
                out[i] = dim
            return out
        cube = dim.reshape([sizes[i] for i in real])
        needed = [k for k in range(cube.ndim) if not _constant_along(cube, k)]
        core = cube[tuple(slice(None) if k in needed else 0 for k in range(cube.ndim))]
        if len(needed) == 1:
            out[real[needed[0]]] = np.ascontiguousarray(core)
            return out
        ids = tuple(self.new(n) for n in core.shape)
        self.factors.append(Factors(np.ascontiguousarray(core), ids))
        for k, nodes in zip(needed, ids, strict=True):
            out[real[k]] = nodes
        return out


def _constant_along(cube: np.ndarray, axis: int) -> bool:
    return bool((cube == np.take(cube, [0], axis=axis)).all())
