"""Measured latency: of a cut, and as a sum of terms that shrink with what is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fairkern.types.arrays import IndexArray


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
