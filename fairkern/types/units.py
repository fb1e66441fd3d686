"""What can be cut from a model: axes, units, groups, taps, sizes and costs. Plain data, no mathematics, no models.

Index arrays are NumPy int64. A group's units touch each of its axes equally often, so every index array
is rectangular: `positions[u]` are the places that unit `u` holds on one axis, ascending.

A group may have several *sets*, each of which loses as many units but not the same ones: its axes lie on tensors whose
dimension 0 counts experts, whose units they are; or a router chooses groups of experts, and the sets lie one behind the
other on the axes themselves. What is per unit is then `[sets, units]` or, where it has to be flat, set after set.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fairkern.types.arrays import IndexArray
from fairkern.types.branches import Blocks, Branch, Entries
from fairkern.types.configuration import ConfigChange, ConfigField
from fairkern.types.sizes import Passed, Replacement, SiteNumber, SizeAttribute, SizeSite


class Side(enum.Enum):
    """Where units are heard: what a tap's activation is to the calls beside it. The values are those of files.

    INPUT: what a module, or a function that is given a weight, reads. OUTPUT: what it returns. Within a module that
    holds all its experts, INNER is what the experts' down projections read, [tokens, E, I], and EXPERT what each expert
    adds to its tokens, weighted by its gate, [tokens, E, H]; the latter also of experts that are modules of a list.
    HIDDEN: states of a recurrent module's own layers that some of its weights read, [vectors, n]. BRANCH: what the
    branch of a residual block adds, as its last module returns it.
    """

    INPUT = "input"
    OUTPUT = "output"
    INNER = "inner"
    EXPERT = "expert"
    HIDDEN = "hidden"
    BRANCH = "branch"

    @property
    def of_call(self) -> bool:
        """A call of a module or function shows it, as an argument or as what it returns."""
        return self in (Side.INPUT, Side.OUTPUT)

    @property
    def of_experts(self) -> bool:
        """It lies within experts, which see the tokens that are routed to them."""
        return self in (Side.INNER, Side.EXPERT)

    @property
    def whole(self) -> bool:
        """It is all that one unit adds: no other unit is heard there, and none is fitted in its place."""
        return self in (Side.EXPERT, Side.BRANCH)

    @property
    def scored(self) -> bool:
        """Units are scored where it is heard, and not only compensated."""
        return self is not Side.HIDDEN


class Silence(enum.Enum):
    """How positions of an axis are silenced, so that the model computes as if their units were gone."""

    NONE = "none"  # they are cut, and need not be silenced: something that reads them is
    ZERO = "zero"  # at a consumer: a weight that contracts over them is set to zero there
    MINUS_INFINITY = "minus infinity"  # at a router: the logit that it gives for them is −inf
    NOTHING_ADDED = "nothing added"  # at a residual stream: what the last module of a branch returns is zero


@dataclass(frozen=True, order=True)
class Axis:
    """One dimension of a parameter or buffer, e.g. `conv1.weight` dim 0; or a list of modules, or branches, dim 0."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}:{self.dim}"

    @property
    def module(self) -> str:
        """Path of the module that holds the tensor; empty for the model itself."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class GroupAxis:
    """The places that a group's units hold on one axis; of several sets, those of all that lie on the axis."""

    axis: Axis
    length: int
    positions: IndexArray  # [units, per unit], or [sets · units, per unit] where the sets lie on the axis itself
    silence: Silence = Silence.NONE

    @property
    def consumer(self) -> bool:
        """Whether it is the axis of a weight that contracts over the units."""
        return self.silence is Silence.ZERO


@dataclass(frozen=True, order=True)
class CallSite:
    """One call within a forward pass: of a module, or of a torch function that is given `weight` directly.

    `call` counts from 0 the calls of that module, or the function calls that are given that weight and an
    activation. `argument`: which of a function's tensor arguments the activation is. `module`, for a function: the
    one that is running.
    """

    module: str
    call: int = 0
    weight: str = ""  # a parameter or buffer; empty: the call of the module itself
    argument: int = 0

    def __str__(self) -> str:
        where = self.weight or self.module
        return f"{where}#{self.call}" if self.call else where


@dataclass(frozen=True)
class Tap:
    """One activation in which the group's units are still alone.

    `sites` are the calls that read it (a module reads it as its first input, and one tensor may feed several
    consumers) or, of an output, the one that returns it. `weights` are the axes of the consumers' weights that contract
    over it (for an output, the axis that produces it).

    Of experts the site's module is the one that holds them all, or the list whose modules they are. Of branches there
    is a site for each, where it is heard. Units of a recurrent module are compensated at its hidden states, and scored
    where they leave the module.
    """

    sites: tuple[CallSite, ...]
    side: Side
    dim: int
    length: int
    positions: IndexArray  # [units, per unit] along `dim`
    weights: tuple[Axis, ...]

    @property
    def name(self) -> str:
        what = self.weights[0].tensor.rpartition(".")[2] if self.side is Side.HIDDEN else self.side.value
        return f"{self.sites[0]}:{what}"

    def of_expert(self, expert: int) -> str:
        """The name under which what one expert of the tap gives is kept."""
        return f"{self.name}[{expert}]"


@dataclass(frozen=True)
class AxisGroup:
    """All units that touch the same axes: what the paper calls a layer.

    `taps` are the inputs of the consumers, `outputs` what the producing layers return (the paper's tap). Without taps,
    no input changes the units, and no sample scores them.
    `frozen` is None, or why no unit of this group may be cut. At least `least` units stay (an expert for each that
    a token is sent to); where a plan cuts the group, a whole `multiple` of units stays (what a kernel asks for). Where
    `sets` is above 1, `units` are those of one set.
    """

    name: str
    kind: str  # "channel", "neuron", …
    units: int
    axes: tuple[GroupAxis, ...]
    taps: tuple[Tap, ...]
    outputs: tuple[Tap, ...] = ()
    frozen: str | None = None
    sets: int = 1
    least: int = 1
    multiple: int = 1

    @property
    def total(self) -> int:
        """Units over all sets."""
        return self.units * self.sets

    @property
    def blocks(self) -> int:
        """How many sets lie one behind the other on its axes: groups of experts; 1 where sets are experts."""
        return self.sets if any(len(held.positions) == self.total for held in self.axes) else 1

    def numbers(self, units: IndexArray) -> IndexArray:
        """Units of every set, `[sets, count]`, as numbers among all units, `[sets · count]`."""
        return (np.arange(self.sets)[:, None] * self.units + units).reshape(-1) if self.sets > 1 else units

    def places(self, held: GroupAxis, units: IndexArray) -> IndexArray:
        """Where these units, `[count]` or `[sets, count]`, lie on one of the group's axes, ascending: `[places]`, or
        `[sets, places]` where the axis holds the units of each set anew."""
        chosen = self.numbers(units) if len(held.positions) == self.total else units
        return np.sort(held.positions[chosen].reshape(*chosen.shape[:-1], -1), axis=-1)

    @property
    def producer_modules(self) -> tuple[str, ...]:
        """Modules whose own tensors hold the units (not those that only consume them), in order, once each."""
        return tuple(dict.fromkeys(a.axis.module for a in self.axes if not a.consumer))


@dataclass(frozen=True)
class FrozenAxis:
    """Positions of an axis that stay, and why."""

    axis: Axis
    positions: int
    length: int
    reason: str


@dataclass(frozen=True)
class KeptUnits:
    """Units of a kind in a module, none of which can be cut, so that no group has them; and why."""

    kind: str  # as of a group
    module: str
    reason: str


@dataclass(frozen=True)
class Extent:
    """A size that shrinks with the groups: `length − Σ per_unit · removed[group]`.

    With a `unit` it is 1 as long as that unit of its only group stays, and then 0: what belongs to an expert or branch.
    """

    length: int
    parts: tuple[tuple[int, int], ...]  # (group index, positions per unit)
    unit: int | None = None


@dataclass(frozen=True)
class CostTerm:
    """`coefficient · Π extents`: a parameter's element count or an operation's FLOPs."""

    coefficient: float
    extents: tuple[int, ...]  # indices into `UnitMap.extents`


@dataclass(frozen=True)
class UnitMap:
    """What can be cut from a model: the result of tracing. Holds no tensors of the model."""

    model: str  # class name
    groups: tuple[AxisGroup, ...]
    frozen: tuple[FrozenAxis, ...]
    extents: tuple[Extent, ...]
    params: tuple[CostTerm, ...]
    flops: tuple[CostTerm, ...]
    attributes: tuple[SizeAttribute, ...]
    shapes: Mapping[str, tuple[int, ...]]  # every parameter and buffer
    proven: bool = False
    notes: tuple[str, ...] = ()
    sites: tuple[SizeSite, ...] = ()  # those that a proof found to need it
    replacements: tuple[Replacement, ...] = ()
    config: tuple[ConfigField, ...] = ()  # shown to describe the pruned model by building from it
    lists: Mapping[str, Entries] = field(default_factory=dict)  # by path; modules that are units, on `Axis(path, 0)`
    kept: tuple[KeptUnits, ...] = ()
    computed: tuple[str, ...] = ()  # tensors that are not contracted themselves, but what is computed from them
    seen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by module with size sites: where it takes sizes
    unused: tuple[str, ...] = ()  # what no input reaches, as the caller of `trace` said
    more: int = 0  # how many further example inputs were traced
    branches: Mapping[str, tuple[Branch, ...]] = field(default_factory=dict)  # that are units, on `Axis(name, 0)`
    blocks: Mapping[str, Blocks] = field(default_factory=dict)  # lists whose modules go with their branches
    depth: bool = False  # whether branches were looked for
    sibling: tuple[ConfigChange, ...] = ()  # fields of the smaller model that was proven in its place; none: itself
    classes: Mapping[str, str] = field(default_factory=dict)  # by group that is named after a module: that one's class

    @property
    def prunable(self) -> tuple[int, ...]:
        """Indices of the groups that may be cut."""
        return tuple(i for i, group in enumerate(self.groups) if group.frozen is None)

    @property
    def scored(self) -> tuple[int, ...]:
        """Indices of those that samples score: without what no input changes, which is heard nowhere."""
        return tuple(i for i in self.prunable if self.groups[i].taps)

    @property
    def branched(self) -> frozenset[int]:
        """Indices of the groups whose units are branches."""
        return frozenset(g for g, x in enumerate(self.groups) if any(a.axis.tensor in self.branches for a in x.axes))

    def without_observed(self, groups: Iterable[int], value: int | None = None) -> UnitMap:
        """The same map without observed attributes that follow any of these groups; of one value only, if given."""
        gone = set(groups)

        def goes(a: SizeAttribute) -> bool:
            return a.observed and value in (None, self.extents[a.extent].length) and bool(self.follows(a.extent) & gone)

        return replace(self, attributes=tuple(a for a in self.attributes if not goes(a)))

    def with_sites(self, sites: Iterable[SizeSite], groups: Iterable[int]) -> UnitMap:
        """The same map with its own size sites and those of `sites` that follow any of these groups."""
        wanted = set(groups)
        more = (s for s in sites if self.follows(s.extent) & wanted and s not in self.sites)
        return replace(self, sites=(*self.sites, *more))

    def with_learned(self, numbers: Mapping[SiteNumber, Passed]) -> UnitMap:
        """The same map without the size sites at which the right numbers are passed, here and in modules traced like
        these; the size is given outright only where the code was seen to pass that of something else."""
        sites = (s for s in self.sites if numbers.get(s.number) is not Passed.RIGHT)
        other = (replace(s, outright=s.outright and numbers.get(s.number) is Passed.OTHER) for s in sites)
        return replace(self, sites=tuple(other))

    def follows(self, extent: int) -> set[int]:
        """Indices of the groups that an extent shrinks with."""
        return {group for group, _ in self.extents[extent].parts}

    def freeze(self, reasons: Mapping[int, str]) -> UnitMap:
        """The same map with the groups at these indices frozen."""
        groups = tuple(
            replace(g, frozen=reasons[i]) if i in reasons and g.frozen is None else g for i, g in enumerate(self.groups)
        )
        return replace(self, groups=groups)
