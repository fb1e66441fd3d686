"""What passes between the stages: plain data, no mathematics, no models.

Index arrays are NumPy int64. A group's units touch each of its axes equally often, so every index array
is rectangular: `positions[u]` are the places that unit `u` holds on one axis, ascending.

A group may have several *sets*: its axes lie on tensors whose dimension 0 counts experts, and every expert loses as
many units but not the same ones. What is per unit is then `[sets, units]` or, where it has to be flat, set after set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

IndexArray = np.ndarray  # int64
FloatArray = np.ndarray  # float64 unless said otherwise


@dataclass(frozen=True, order=True)
class Axis:
    """One dimension of one parameter or buffer, e.g. `conv1.weight` dim 0; or a list of modules, dim 0."""

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
    """The places that a group's units hold on one axis."""

    axis: Axis
    length: int
    positions: IndexArray  # [units, per unit]
    consumer: bool  # a weight that contracts over the units along this axis
    routes: bool = False  # a router's weight: masked, what it gives for a unit is −inf


@dataclass(frozen=True, order=True)
class Site:
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

    `sites` are the calls that read it (`side="input"`; a module reads it as its first input, and one tensor may
    feed several consumers) or the one that returns it (`side="output"`). `weights` are the axes of the consumers'
    weights that contract over it (for an output, the axis that produces it).

    Within a module that holds all its experts: `side="inner"` is what the experts' down projections read,
    [tokens, E, I], and `side="expert"` what each expert adds to its tokens, weighted by its gate, [tokens, E, H]. The
    latter also of experts that are modules of a list, whose path is the site's module then.

    Within a recurrent module `side="hidden"`: states of its own layers that some of its weights read, [vectors, n]. Its
    units are compensated there, and scored where they leave the module.
    """

    sites: tuple[Site, ...]
    side: str  # "input" | "output" | "inner" | "expert" | "hidden"
    dim: int
    length: int
    positions: IndexArray  # [units, per unit] along `dim`
    weights: tuple[Axis, ...]

    @property
    def name(self) -> str:
        what = self.weights[0].tensor.rpartition(".")[2] if self.side == "hidden" else self.side
        return f"{self.sites[0]}:{what}"


@dataclass(frozen=True)
class AxisGroup:
    """All units that touch the same axes: what the paper calls a layer.

    `taps` are the inputs of the consumers, `outputs` what the producing layers return (the paper's tap).
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
class Entries:
    """Modules of a list (`nn.ModuleList`, `nn.ModuleDict`) that are units: experts to which a router sends tokens.

    `names`: theirs in the list, in order. `width`: how many values each of them gives for a token.
    """

    names: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class Extent:
    """A size that shrinks with the groups: `length − Σ per_unit · removed[group]`.

    With a `unit` it is 1 as long as that unit of its only group stays, and then 0: what belongs to one expert.
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
class SizeAttribute:
    """A module attribute that holds a size (`Conv2d.out_channels`) and the extent that it follows.

    `attribute` may be dotted (`config.num_experts`). An attribute that comes several times is one size of several
    layers: it changes where all of them agree.
    `observed`: recognised by its value in what reshapes of its module were given (`Attention.num_heads`), not by
    the module's class.
    """

    module: str
    attribute: str
    extent: int  # index into `UnitMap.extents`
    observed: bool = False


@dataclass(frozen=True)
class SizeSite:
    """A size that a module's own code passes to a call, as a number, and the extent that it follows.

    `call` counts the size-taking calls that the module makes itself within one forward pass, from 0; `function` is
    the name of the function and `place` counts the numbers that it is given (`fairkern.size_calls`). `like`: the
    module that makes the same calls, where the example inputs did not reach this one.
    """

    module: str
    call: int
    function: str
    place: int
    extent: int  # index into `UnitMap.extents`
    like: str = field(default="", compare=False)


@dataclass(frozen=True)
class Replacement:
    """A module that runs as another class of `fairkern.replacements`, equal in function, once it is cut."""

    module: str
    name: str


@dataclass(frozen=True)
class ConfigField:
    """A field of the model's configuration that counts units: `size · kept / units` when its groups agree on that.

    `name` is dotted ("text_config.intermediate_size"). `before` is what it holds, None where it is left to a default
    of `size`. `fixed`: the field is set to `size` when its groups are cut (the size of a head).
    """

    name: str
    before: int | None
    size: int
    groups: tuple[int, ...]
    fixed: bool = False


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

    @property
    def prunable(self) -> tuple[int, ...]:
        """Indices of the groups that may be cut."""
        return tuple(i for i, group in enumerate(self.groups) if group.frozen is None)

    def without_observed(self, groups: Iterable[int]) -> UnitMap:
        """The same map without observed attributes that follow any of these groups."""
        gone = set(groups)
        stays = (a for a in self.attributes if not (a.observed and self.follows(a.extent) & gone))
        return replace(self, attributes=tuple(stays))

    def with_sites(self, sites: Iterable[SizeSite], groups: Iterable[int]) -> UnitMap:
        """The same map with its own size sites and those of `sites` that follow any of these groups."""
        wanted = set(groups)
        more = (s for s in sites if self.follows(s.extent) & wanted and s not in self.sites)
        return replace(self, sites=(*self.sites, *more))

    def without_sites(self, sites: Iterable[tuple[str, int, int]]) -> UnitMap:
        """The same map without the size sites at these (module, call, place), and in modules traced like those."""
        gone = set(sites)
        return replace(self, sites=tuple(s for s in self.sites if (s.like or s.module, s.call, s.place) not in gone))

    def follows(self, extent: int) -> set[int]:
        """Indices of the groups that an extent shrinks with."""
        return {group for group, _ in self.extents[extent].parts}

    def freeze(self, reasons: Mapping[int, str]) -> UnitMap:
        """The same map with the groups at these indices frozen."""
        groups = tuple(
            replace(g, frozen=reasons[i]) if i in reasons and g.frozen is None else g for i, g in enumerate(self.groups)
        )
        return replace(self, groups=groups)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over `count` vectors `a` of what a consumer reads, samples and places alike.

    Float64. `per_unit` positions of the tap in a row share one entry of `a`: the tap has `n · per_unit` positions.
    """

    gram: FloatArray  # [n, n], Σ a aᵀ
    total: FloatArray  # [n], Σ a
    count: int
    per_unit: int = 1


@dataclass(frozen=True, eq=False)
class JointMoments:
    """Sums over `count` pairs of vectors: `a` that a consumer read, `b` that it reads in a changed model. Float64."""

    cross: FloatArray  # [n, n], Σ a bᵀ
    gram: FloatArray  # [n, n], Σ b bᵀ
    total: FloatArray  # [n], Σ a
    changed: FloatArray  # [n], Σ b
    count: int
    per_unit: int = 1


@dataclass(frozen=True)
class Scores:
    """Per group and unit: removal and protection signals, and what a later stage needs of the same pass.

    `signals["wasserstein"][g]` is the U-score and `signals["taylor"][g]` the R-score of group `g`:
    float64 `[sets · units]`, empty for a frozen group. `means[tap name]` is the mean activation per tap position,
    float64 `[length]`. `moments[tap name]` is there, for every tap that consumers read, if scoring was asked to keep
    them. `grids[tap name]`, where units have places behind their dimension: how many samples had a grid of which size.
    `provenance` says how they came about: settings, sample counts, backends, seconds.
    """

    units: UnitMap
    signals: Mapping[str, tuple[FloatArray, ...]]
    means: Mapping[str, FloatArray]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    grids: Mapping[str, Mapping[tuple[int, ...], int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LatencyCut:
    """How long a model took with some units gone: all of it, and each layer of it that holds parameters.

    `outputs`: elements and shape of what each layer returned.
    """

    removed: IndexArray  # [groups]
    ms: float
    layers: Mapping[str, float]  # module path → ms
    outputs: Mapping[str, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long a model takes on one device, as a sum of terms that shrink with what is cut.

    `layers` maps a module path to milliseconds by what they follow: "fixed" nothing, "elements" the elements of the
    module's parameters, `weight:0` the length of that parameter's first dimension that can shrink. `rest` is what no
    layer accounts for: "fixed", "flops" (all FLOPs) and "outputs" (what the layers return). `outputs` says how many
    elements of those follow a dimension (`conv1.weight:0`). `whole`: milliseconds of the uncut model; the terms are not
    asked for it, since its widths are often those that kernels like best. `error`: the largest relative difference
    between a cut as it was measured and as it comes out here. `key` says where and on what it was measured.
    """

    layers: Mapping[str, Mapping[str, float]]
    rest: Mapping[str, float]
    outputs: Mapping[str, float]
    parameters: tuple[str, ...]  # in the model's order
    shapes: Mapping[str, tuple[int, ...]]
    whole: float
    error: float = 0.0
    key: Mapping[str, Any] = field(default_factory=dict)

    def scaled(self, by: float) -> LatencyTable:
        """The same table, in which every cut takes so many times as long."""
        layers = {path: {what: ms * by for what, ms in terms.items()} for path, terms in self.layers.items()}
        return replace(self, layers=layers, rest={what: ms * by for what, ms in self.rest.items()})


@dataclass(frozen=True)
class PlanGroup:
    """One group's part of a plan: which of its units go."""

    name: str
    kind: str
    units: int  # of one set
    removed: IndexArray  # [removed] or, with several sets, [sets, removed]; ascending
    sets: int = 1

    @property
    def total(self) -> int:
        """Units over all sets."""
        return self.units * self.sets

    @property
    def rate(self) -> float:
        return self.removed.size / self.total


@dataclass(frozen=True)
class PlanAxis:
    """Positions that go from one axis.

    `consumer` marks those that `masked` sets to zero, `routes` a router's weight: masked, what it gives there is −inf.
    """

    axis: Axis
    length: int
    removed: IndexArray  # [positions] or, for a set per position of the tensor's dimension 0, [sets, positions]
    consumer: bool
    routes: bool = False


@dataclass(frozen=True)
class AttributeChange:
    module: str
    attribute: str
    before: int
    after: int


@dataclass(frozen=True)
class SizeChange:
    """What a size site is given after the cut, in place of what it was given before (see `SizeSite`)."""

    module: str
    call: int
    function: str
    place: int
    before: int
    after: int

    @property
    def common(self) -> int:
        """The largest number that divides both sizes."""
        return math.gcd(self.before, self.after)


@dataclass(frozen=True)
class ConfigChange:
    """A field of the model's configuration, before and after the cut (see `ConfigField`)."""

    name: str
    before: int | None
    after: int


@dataclass(frozen=True)
class Plan:
    """Which positions of which axes go. Data, not code; applies without tracing again.

    `request` is what was asked (`{"keep_params": 0.5, …}`), `result` what the plan gives: parameters and
    FLOPs before and after, the solved tolerance.
    """

    model: str
    groups: tuple[PlanGroup, ...]
    axes: tuple[PlanAxis, ...]
    attributes: tuple[AttributeChange, ...]
    shapes: Mapping[str, tuple[int, ...]]
    request: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[SizeChange, ...] = ()
    replacements: tuple[Replacement, ...] = ()
    config: tuple[ConfigChange, ...] = ()
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # modules of a list that loses some, by its path

    def length(self, axis: Axis) -> int | None:
        """Positions of an axis of a tensor or of a list before the cut; None where there is no such axis."""
        if axis.tensor in self.lists:
            return len(self.lists[axis.tensor]) if axis.dim == 0 else None
        shape = self.shapes.get(axis.tensor, ())
        return shape[axis.dim] if 0 <= axis.dim < len(shape) else None


@dataclass(frozen=True)
class Report:
    """What a run did, ready for a table, JSON or a picture.

    `before` and `after` map measures (`params`, `flops`, `latency_ms`, `accuracy`) to numbers; `groups` has a
    row per group; `stages` maps a stage to its seconds; `choices` records what was chosen automatically.
    """

    title: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    groups: tuple[Mapping[str, Any], ...]
    stages: Mapping[str, float]
    choices: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
