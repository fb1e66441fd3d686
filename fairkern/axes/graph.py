"""What a trace collects: nodes (axis positions), and facts about them: what goes together, what stays, who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Fixed, Track, Uniform
from fairkern.axes.facts import (
    BatchNormalisation,
    Computed,
    Contraction,
    Edge,
    Fact,
    Factors,
    Flops,
    Freeze,
    GivenSize,
    GroupedConvolution,
    GroupNormalisation,
    Product,
    Production,
    Ranking,
    SizeCallsOfModule,
    Spread,
)
from fairkern.axes.unless import Unless


@dataclass
class Graph:
    """Collects what rules say, one list for each kind of fact, in the order in which it was seen.

    Node ids are dense from 0. Of several facts on one number of one module or weight the last holds.
    """

    nodes: int = 0
    edges: list[Edge] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    factors: list[Factors] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    productions: list[Production] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)
    flops: list[Flops] = field(default_factory=list)
    grouped_convolutions: list[GroupedConvolution] = field(default_factory=list)
    group_norms: list[GroupNormalisation] = field(default_factory=list)
    batch_norms: list[BatchNormalisation] = field(default_factory=list)
    given_sizes: list[GivenSize] = field(default_factory=list)
    size_calls: list[SizeCallsOfModule] = field(default_factory=list)
    slices: dict[bytes, tuple[np.ndarray, set[tuple[int, int]]]] = field(default_factory=dict)  # places of each whole
    same: dict[object, object] = field(default_factory=dict)  # origins of uniform dimensions that met one another
    met: dict[object, dict[int, np.ndarray]] = field(default_factory=dict)  # what those of an origin met, by length

    def facts(self) -> Iterator[list[Fact]]:
        """The lists of facts."""
        held = (getattr(self, f.name) for f in fields(self))
        return (facts for facts in held if isinstance(facts, list))

    def new(self, n: int) -> np.ndarray:
        """`n` fresh nodes."""
        start = self.nodes
        self.nodes += n
        return np.arange(start, self.nodes, dtype=np.int32)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Position by position: `a[i]` and `b[i]` are cut together."""
        if a is not b:
            self.edges.append(Edge(a.reshape(-1), b.reshape(-1)))

    def sliced(self, whole: np.ndarray, start: int, end: int) -> None:
        """These positions of a dimension are taken."""
        self.slices.setdefault(whole.tobytes(), (whole, set()))[1].add((start, end))

    def join_parts(self) -> None:
        """Couples what was sliced into parts of one size, as by a split, so that they stay equal."""
        for whole, places in self.slices.values():
            lengths = {end - start for start, end in places}
            n = lengths.pop()
            if not lengths and len(whole) % n == 0 and all(start % n == 0 for start, _ in places):
                for other in np.split(whole, len(whole) // n)[1:]:
                    self.join(whole[:n], other)
        self.slices.clear()

    def freeze(self, dim: Dim, reason: str, unless: Unless = Unless.LISTED) -> None:
        """These positions stay, and why. The first reason recorded is the one that is told."""
        if isinstance(dim, np.ndarray) and dim.size:
            self.freezes.append(Freeze(dim.reshape(-1), reason, unless))

    def read(self, track: Track) -> None:
        """Something depends on the values of a tensor: what they run over stays."""
        for dim, reason, unless in track.mixed:
            self.freeze(dim, reason, unless)

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
            if isinstance(other, Uniform) and isinstance(tracked, np.ndarray):
                self._met(other, tracked)
            else:
                self.freeze(tracked, reason)
            return tracked
        if not (isinstance(a, Uniform) and isinstance(b, Uniform)):
            return CONSTANT
        self._alike(a, b)
        return a.filled

    def _met(self, dim: Uniform, nodes: np.ndarray) -> None:
        """All that meets one uniform dimension has its length: a mask for the heads of every layer."""
        self.join(self.met.setdefault(self._origin(dim), {}).setdefault(len(nodes), nodes), nodes)

    def met_by(self, dim: Dim, length: int) -> Dim:
        """What a uniform dimension of this length met, if it has nodes; all others are what they are."""
        return self.met.get(self._origin(dim), {}).get(length, dim) if isinstance(dim, Uniform) else dim

    def _alike(self, a: Uniform, b: Uniform) -> None:
        first, second = self._origin(a), self._origin(b)
        if first is not second:
            self.same[second] = first
            for nodes in self.met.pop(second, {}).values():
                self._met(a, nodes)

    def _origin(self, dim: Uniform) -> object:
        origin = dim.origin
        while origin in self.same:
            origin = self.same[origin]
        return origin

    def merge(self, sizes: Sequence[int], dims: Sequence[Dim]) -> Dim:
        """The single dimension that these, in order, flatten to."""
        kept = [(n, d) for n, d in zip(sizes, dims, strict=True) if n != 1]
        if not kept:
            return CONSTANT
        if len(kept) == 1:
            return kept[0][1]
        uniform = [d for _, d in kept if isinstance(d, Uniform)]
        if 0 < len(uniform) < len(kept) and all(isinstance(d, Fixed) for _, d in kept):
            # what is alike along one of them may still meet units there: a key for all heads, folded into the batch
            kept = [(n, self.meet(self.new(n), d, "") if isinstance(d, Uniform) else d) for n, d in kept]
        tracked = [i for i, (_, d) in enumerate(kept) if isinstance(d, np.ndarray)]
        if not tracked:
            return Uniform(all(d.zero for d in uniform)) if uniform else CONSTANT
        shape = tuple(n for n, _ in kept)
        if len(tracked) == 1:
            (i,) = tracked
            ids = kept[i][1]
            assert isinstance(ids, np.ndarray)
            if len(kept) == 2 and i == 0 and uniform and self._ranked(ids):
                within = self.meet(self.new(shape[1]), kept[1][1], "")
                assert isinstance(within, np.ndarray)
                flat = self.new(shape[0] * shape[1])
                self.spreads.append(Spread(flat.reshape(shape), ids, within))
                return flat
            along = ids.reshape([-1 if k == i else 1 for k in range(len(shape))])
            return np.ascontiguousarray(np.broadcast_to(along, shape)).reshape(-1)
        inner = self.new(int(np.prod([shape[i] for i in tracked]))).reshape([shape[i] for i in tracked])
        self.factors.append(Factors(inner, tuple(d for _, d in kept if isinstance(d, np.ndarray))))
        spread = inner.reshape([n if k in tracked else 1 for k, n in enumerate(shape)])
        return np.ascontiguousarray(np.broadcast_to(spread, shape)).reshape(-1)

    def _ranked(self, nodes: np.ndarray) -> bool:
        return any(np.array_equal(ranking.nodes, nodes) for ranking in self.rankings)

    def factors_of(self, flat: np.ndarray) -> tuple[np.ndarray, ...] | None:
        """What was merged or split to give exactly these positions; None if nothing was."""
        same = (f.factors for f in reversed(self.factors) if not f.first and np.array_equal(f.flat.reshape(-1), flat))
        return next(same, None)

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """The dimensions that one dimension becomes when it is viewed as `sizes`."""
        if isinstance(dim, Uniform) and sum(n != 1 for n in sizes) > 1:
            return [dim.another if n != 1 else CONSTANT for n in sizes]
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
