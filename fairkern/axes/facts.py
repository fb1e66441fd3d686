"""Facts about the traced graph: what rules say of axis positions (nodes), of weights, and of calls.

Each is a record that nothing changes and that knows how to move: what the same fact is where another module takes the
part of the one that was seen (`siblings.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from fairkern.axes.dims import Dim, Track
from fairkern.axes.relocation import Relocation
from fairkern.axes.unless import Unless
from fairkern.types import Axis, CallSite, Side


class Fact(ABC):
    """Something that was seen."""

    @abstractmethod
    def moved(self, to: Relocation) -> Fact | None:
        """The same of the sibling; None where this says nothing of the module alone."""


@dataclass(frozen=True, eq=False)
class Edge(Fact):
    """Position by position: `a[i]` and `b[i]` are cut together."""

    a: np.ndarray
    b: np.ndarray

    def moved(self, to: Relocation) -> Edge | None:
        here = to.own[self.a]
        return Edge(to.nodes[self.a[here]], to.nodes[self.b[here]]) if here.any() else None


@dataclass(frozen=True, eq=False)
class Freeze(Fact):
    """These positions stay, and why."""

    nodes: np.ndarray
    reason: str
    unless: Unless

    def moved(self, to: Relocation) -> Freeze | None:
        here = self.nodes[to.own[self.nodes]]
        return replace(self, nodes=to.nodes[here]) if here.size else None


@dataclass(frozen=True, eq=False)
class Factors(Fact):
    """A view that splits or merges tracked positions, or channels that lie in groups: `flat[i, j, …]` stands for
    `factors[0][i], factors[1][j], …`.

    Which factor carries the unit is decided when all is known (`solver.py`). With a reason why others stay then, the
    first one does wherever it may: whole groups of a grouped convolution, and not one channel of each.
    """

    flat: np.ndarray  # [n0, n1, …]
    factors: tuple[np.ndarray, ...]  # [n0], [n1], …
    first: str = ""

    def moved(self, to: Relocation) -> Factors | None:
        if not any(to.own[nodes].any() for nodes in (self.flat, *self.factors)):
            return None
        return replace(self, flat=to.nodes[self.flat], factors=tuple(to.nodes[nodes] for nodes in self.factors))


@dataclass(frozen=True, eq=False)
class Ranking(Fact):
    """The `k` largest among these positions are looked for."""

    nodes: np.ndarray
    k: int

    def moved(self, to: Relocation) -> Ranking | None:
        return Ranking(to.nodes[self.nodes], self.k) if to.own[self.nodes].any() else None


@dataclass(frozen=True, eq=False)
class Spread(Fact):
    """What holds for one of several blocks, said again for each place within: `flat[i, j]` is alike for all `j`.

    A mask of chosen groups of experts, say. Each position goes with its block, unless those that it meets are experts
    which lie in these blocks (`grouped_choice.py`).
    """

    flat: np.ndarray  # [blocks, within]
    blocks: np.ndarray
    within: np.ndarray

    def moved(self, to: Relocation) -> Spread | None:
        if not to.own[self.flat].any():
            return None
        return Spread(to.nodes[self.flat], to.nodes[self.blocks], to.nodes[self.within])


@dataclass(frozen=True, eq=False)
class Product(Fact):
    """Two activations are multiplied as matrices, for each of these positions alone (attention's heads)."""

    module: str
    nodes: np.ndarray

    def moved(self, to: Relocation) -> Product | None:
        return Product(to.path(self.module), to.nodes[self.nodes]) if to.holds(self.module) else None


@dataclass(frozen=True, eq=False)
class Contraction(Fact):
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
    summed: bool = False  # a sum over the weight itself: it is silenced here, and heard where it is contracted
    whole: np.ndarray | None = None  # groups of a convolution: it contracts within them, unless they go as a whole
    still: bool = False  # no input changes the activation: no sample tells its units apart, so nothing to tap

    @property
    def untapped(self) -> bool:
        return self.training or self.still or self.summed or (self.inner and self.side is not Side.HIDDEN)

    def moved(self, to: Relocation) -> Contraction | None:
        if self.weight.tensor not in to.tensors:
            return None
        return replace(
            self,
            weight=to.axis(self.weight),
            nodes=to.nodes[self.nodes],
            activation=to.track(self.activation),
            site=to.site(self.site),
            whole=None if self.whole is None else to.nodes[self.whole],
        )


@dataclass(frozen=True, eq=False)
class Production(Fact):
    """A weight whose axis becomes a dimension of its module's output."""

    weight: Axis
    nodes: np.ndarray
    dim: int
    site: CallSite

    def moved(self, to: Relocation) -> Production | None:
        if self.weight.tensor not in to.tensors:
            return None
        return replace(self, weight=to.axis(self.weight), nodes=to.nodes[self.nodes], site=to.site(self.site))


@dataclass(frozen=True, eq=False)
class Computed(Fact):
    """A parameter that is not contracted itself, but what is computed from it."""

    tensor: str

    def moved(self, to: Relocation) -> Computed | None:
        return Computed(to.tensors[self.tensor]) if self.tensor in to.tensors else None


@dataclass(frozen=True, eq=False)
class Flops(Fact):
    """An operation costs `factor · Π len(dims)` on the example inputs."""

    factor: float
    dims: tuple[np.ndarray, ...]

    def moved(self, to: Relocation) -> None:
        """A module that the example inputs do not reach costs nothing on them."""
        return


@dataclass(frozen=True, eq=False)
class GroupedConvolution(Fact):
    """Which positions a grouped convolution's numbers of channels and groups count."""

    weight: str
    channels: np.ndarray  # of its input
    groups: np.ndarray | None  # None: they stay
    made: np.ndarray  # channels of its output

    def moved(self, to: Relocation) -> GroupedConvolution | None:
        if self.weight not in to.tensors:
            return None
        groups = None if self.groups is None else to.nodes[self.groups]
        return GroupedConvolution(to.tensors[self.weight], to.nodes[self.channels], groups, to.nodes[self.made])


@dataclass(frozen=True, eq=False)
class GroupNormalisation(Fact):
    """Which positions a group norm's numbers of channels and groups count."""

    module: str
    channels: np.ndarray
    groups: np.ndarray

    def moved(self, to: Relocation) -> GroupNormalisation | None:
        if not to.holds(self.module):
            return None
        return GroupNormalisation(to.path(self.module), to.nodes[self.channels], to.nodes[self.groups])


@dataclass(frozen=True, eq=False)
class BatchNormalisation(Fact):
    """Which positions a batch or instance norm's number of features counts, which may have no tensors."""

    module: str
    channels: np.ndarray

    def moved(self, to: Relocation) -> BatchNormalisation | None:
        return BatchNormalisation(to.path(self.module), to.nodes[self.channels]) if to.holds(self.module) else None


@dataclass(frozen=True, eq=False)
class GivenSize(Fact):
    """A reshape, expand or split was given the number of these positions; `module`: the innermost around it."""

    module: str
    nodes: np.ndarray

    def moved(self, to: Relocation) -> GivenSize | None:
        return GivenSize(to.path(self.module), to.nodes[self.nodes]) if to.holds(self.module) else None


@dataclass(frozen=True, eq=False)
class SizeCall:
    """One call and, per number that it was given, the value and the dimension whose length the value became."""

    at: str  # where the module's code makes it (`fairkern.model.call_places`); empty without numbers
    function: str
    numbers: tuple[tuple[int, Dim], ...]  # a number that is not whole, or is −1, has the dimension CONSTANT


@dataclass(frozen=True, eq=False)
class SizeCallsOfModule(Fact):
    """The size-taking calls that a module's own code makes in one call of it in eval mode, in order."""

    module: str
    calls: tuple[SizeCall, ...]
    like: str = ""  # the module that was seen to make them, where the example inputs did not reach this one

    def moved(self, to: Relocation) -> SizeCallsOfModule | None:
        if not to.holds(self.module):
            return None
        calls = (SizeCall(c.at, c.function, tuple((n, to.dim(dim)) for n, dim in c.numbers)) for c in self.calls)
        return SizeCallsOfModule(to.path(self.module), tuple(calls), self.like or self.module)
