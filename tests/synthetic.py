"""Unit maps of made-up networks: for tests of the stages that need a map but no model and no tracing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fairkern.types import (
    Axis,
    AxisGroup,
    CallSite,
    CostTerm,
    Extent,
    GroupAxis,
    Scores,
    Side,
    Silence,
    SizeAttribute,
    Tap,
    UnitMap,
)


@dataclass(frozen=True)
class Fixed:
    """Channels that belong to no group: an image's, or a classifier's classes."""

    channels: int


Segment = int | Fixed  # a group, or channels that stay
Segments = Sequence[Segment]


@dataclass
class _Group:
    name: str
    units: int
    per_unit: int
    frozen: str | None
    axes: list[GroupAxis] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    outputs: list[Tap] = field(default_factory=list)


class Sketch:
    """A network drawn layer by layer; `build()` gives its UnitMap, `flops(removed)` an independent count.

    An activation is a list of segments (groups, or `Fixed` channels) in the order of concatenation.
    """

    def __init__(self, model: str = "Sketch") -> None:
        self.model = model
        self.groups: list[_Group] = []
        self.extents: list[Extent] = []
        self.params: list[CostTerm] = []
        self.operations: list[CostTerm] = []
        self.attributes: list[SizeAttribute] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.counts: list[Callable[[Sequence[int]], float]] = []

    def channels(self, name: str, units: int, per_unit: int = 1, frozen: str | None = None) -> int:
        """A new group of `units`, each `per_unit` consecutive channels wide."""
        self.groups.append(_Group(name, units, per_unit, frozen))
        return len(self.groups) - 1

    def _width(self, segment: Segment, removed: Sequence[int] | None = None) -> int:
        if isinstance(segment, Fixed):
            return segment.channels
        group = self.groups[segment]
        return (group.units - (removed[segment] if removed is not None else 0)) * group.per_unit

    def width(self, segments: Segments, removed: Sequence[int] | None = None) -> int:
        return sum(self._width(s, removed) for s in segments)

    def _extent(self, segments: Segments, flat: int = 1) -> int:
        parts = tuple((s, self.groups[s].per_unit * flat) for s in segments if not isinstance(s, Fixed))
        self.extents.append(Extent(self.width(segments) * flat, parts))
        return len(self.extents) - 1

    def _positions(self, segments: Segments, flat: int = 1) -> dict[int, np.ndarray]:
        start, found = 0, {}
        for segment in segments:
            width = self._width(segment) * flat
            if not isinstance(segment, Fixed):
                found[segment] = np.arange(start, start + width, dtype=np.int64).reshape(self.groups[segment].units, -1)
            start += width
        return found

    def _hold(self, tensor: str, dim: int, segments: Segments, consumer: bool, flat: int = 1) -> None:
        for group, positions in self._positions(segments, flat).items():
            axis = GroupAxis(
                Axis(tensor, dim), self.width(segments) * flat, positions, Silence.ZERO if consumer else Silence.NONE
            )
            self.groups[group].axes.append(axis)

    def _weight(self, name: str, source: Segments, out: Segments, tail: tuple[int, ...], flat: int, area: int) -> None:
        weight = f"{name}.weight"
        width_out, width_in = self.width(out), self.width(source) * flat
        self.shapes[weight] = (width_out, width_in, *tail)
        self._hold(weight, 0, out, False)
        self._hold(weight, 1, source, True, flat)
        rows, columns = self._extent(out), self._extent(source, flat)
        self.params.append(CostTerm(math.prod(tail), (rows, columns)))
        self.operations.append(CostTerm(2.0 * math.prod(tail) * area, (columns, rows)))
        self.counts.append(
            lambda removed: 2 * math.prod(tail) * area * self.width(out, removed) * self.width(source, removed) * flat
        )
        for group, positions in self._positions(source, flat).items():
            self.groups[group].taps.append(
                Tap((CallSite(name),), Side.INPUT, 1, width_in, positions, (Axis(weight, 1),))
            )
        for group, positions in self._positions(out).items():
            self.groups[group].outputs.append(
                Tap((CallSite(name),), Side.OUTPUT, 1, width_out, positions, (Axis(weight, 0),))
            )
        ends = ("in_features", "out_features") if not tail else ("in_channels", "out_channels")
        self.attributes += [SizeAttribute(name, ends[0], columns), SizeAttribute(name, ends[1], rows)]

    def _vector(self, tensor: str, segments: Segments, parameter: bool = True) -> None:
        self.shapes[tensor] = (self.width(segments),)
        self._hold(tensor, 0, segments, False)
        if parameter:
            self.params.append(CostTerm(1.0, (self._extent(segments),)))

    def conv(self, name: str, source: Segments, out: Segments, kernel: int = 3, area: int = 64) -> None:
        """A convolution without bias, `area` output positions."""
        self._weight(name, source, out, (kernel, kernel), 1, area)

    def norm(self, name: str, segments: Segments, area: int = 64) -> None:
        """A BatchNorm with its statistics."""
        for tensor in ("weight", "bias"):
            self._vector(f"{name}.{tensor}", segments)
        for tensor in ("running_mean", "running_var"):
            self._vector(f"{name}.{tensor}", segments, parameter=False)
        self.shapes[f"{name}.num_batches_tracked"] = ()
        extent = self._extent(segments)
        self.operations.append(CostTerm(2.0 * area, (extent,)))
        self.counts.append(lambda removed: 2 * area * self.width(segments, removed))
        self.attributes.append(SizeAttribute(name, "num_features", extent))

    def linear(self, name: str, source: Segments, out: Segments, flat: int = 1) -> None:
        """A linear layer with bias, over channels of `flat` positions each."""
        self._weight(name, source, out, (), flat, 1)
        self._vector(f"{name}.bias", out)

    def flops(self, removed: Sequence[int]) -> float:
        """FLOPs with so many units removed per group, counted layer by layer."""
        return sum(count(removed) for count in self.counts)

    def build(self) -> UnitMap:
        groups = tuple(
            AxisGroup(g.name, "channel", g.units, tuple(g.axes), tuple(g.taps), tuple(g.outputs), g.frozen)
            for g in self.groups
        )
        return UnitMap(
            self.model,
            groups,
            (),
            tuple(self.extents),
            tuple(self.params),
            tuple(self.operations),
            tuple(self.attributes),
            dict(self.shapes),
        )


def chain(widths: Sequence[int] = (8, 12, 16), classes: int = 5, flat: int = 4) -> Sketch:
    """conv → norm, several times, then a flatten and a linear layer."""
    sketch = Sketch("Chain")
    source: Segments = [Fixed(3)]
    for i, width in enumerate(widths):
        out = [sketch.channels(f"features.{i}.conv", width)]
        sketch.conv(f"features.{i}.conv", source, out)
        sketch.norm(f"features.{i}.norm", out)
        source = out
    sketch.linear("head", source, [Fixed(classes)], flat=flat)
    return sketch


def concat(widths: Sequence[int] = (6, 4, 10), classes: int = 5) -> Sketch:
    """Densely connected: every convolution reads the concatenation of all before it."""
    sketch = Sketch("Concat")
    source: Segments = [Fixed(3)]
    for i, width in enumerate(widths):
        out = sketch.channels(f"dense.{i}", width, per_unit=1 + i % 2)
        sketch.conv(f"dense.{i}", source, [out])
        source = [*source, out]
        sketch.norm(f"norm.{i}", source)
    sketch.linear("head", source, [Fixed(classes)])
    return sketch


def residual(width: int = 12, blocks: int = 3, inner: int = 6, classes: int = 5) -> Sketch:
    """A stem, then blocks that add to its stream; the stream is one group, a second stream is frozen."""
    sketch = Sketch("Residual")
    stream = [sketch.channels("stem", width)]
    frozen = [sketch.channels("frozen", 4, frozen="a LayerNorm runs over it")]
    sketch.conv("stem", [Fixed(3)], stream)
    for i in range(blocks):
        middle = [sketch.channels(f"layer{i}.0.conv1", inner)]
        sketch.conv(f"layer{i}.0.conv1", stream, middle)
        sketch.norm(f"layer{i}.0.bn1", middle)
        sketch.conv(f"layer{i}.0.conv2", middle, stream)
        sketch.norm(f"layer{i}.0.bn2", stream)
    sketch.linear("neck", stream, frozen)
    sketch.linear("head", frozen, [Fixed(classes)])
    return sketch


def resnet50() -> Sketch:
    """Groups, shapes and costs of ResNet-50 on 224 × 224: 25,557,032 parameters."""
    sketch = Sketch("ResNet")
    source = [sketch.channels("conv1", 64)]
    sketch.conv("conv1", [Fixed(3)], source, 7, 112**2)
    sketch.norm("bn1", source, 112**2)
    for stage, (width, depth, side) in enumerate(((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)), 1):
        stream = [sketch.channels(f"layer{stage}.stream", 4 * width)]
        for block in range(depth):
            name = f"layer{stage}.{block}"
            first, second = ([sketch.channels(f"{name}.conv{i}", width)] for i in (1, 2))
            sketch.conv(f"{name}.conv1", source, first, 1, side**2 * (4 if stage > 1 and block == 0 else 1))
            sketch.norm(f"{name}.bn1", first, side**2)
            sketch.conv(f"{name}.conv2", first, second, 3, side**2)
            sketch.norm(f"{name}.bn2", second, side**2)
            sketch.conv(f"{name}.conv3", second, stream, 1, side**2)
            sketch.norm(f"{name}.bn3", stream, side**2)
            if block == 0:
                sketch.conv(f"{name}.downsample.0", source, stream, 1, side**2)
                sketch.norm(f"{name}.downsample.1", stream, side**2)
            source = stream
    sketch.linear("fc", source, [Fixed(1000)])
    return sketch


def random_scores(units: UnitMap, seed: int = 0, ties: bool = False) -> Scores:
    """Scores drawn at random for every group that may be cut; `ties` rounds them to few values."""
    generator = np.random.default_rng(seed)

    def signal() -> tuple[np.ndarray, ...]:
        values = [generator.gamma(2.0, size=g.units if g.frozen is None else 0) for g in units.groups]
        return tuple(np.round(v) if ties else v for v in values)

    means = {tap.name: generator.normal(size=tap.length) for group in units.groups for tap in group.taps}
    return Scores(units, {"wasserstein": signal(), "taylor": signal()}, means, {"seed": seed})
