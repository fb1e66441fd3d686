"""From a module that was traced to one like it that was not: other positions, tensors, modules and calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fairkern.axes.dims import Dim, Track
from fairkern.types import Axis, CallSite


@dataclass(frozen=True, eq=False)
class Relocation:
    """What stands for what when a module's facts are said of a sibling. What lies outside both stays what it is."""

    module: str  # path of the one that was traced
    sibling: str
    tensors: Mapping[str, str]  # its tensors -> the sibling's
    own: np.ndarray  # per node: whether it belongs to the module alone
    nodes: np.ndarray  # per node: the one that takes its place
    _tracks: dict[Track, Track] = field(default_factory=dict)

    def holds(self, path: str) -> bool:
        """Whether the module is or holds the one at `path`."""
        return path == self.module or path.startswith(f"{self.module}.")

    def path(self, path: str) -> str:
        return self.sibling + path.removeprefix(self.module) if self.holds(path) else path

    def axis(self, axis: Axis) -> Axis:
        return Axis(self.tensors.get(axis.tensor, axis.tensor), axis.dim)

    def site(self, site: CallSite) -> CallSite:
        return replace(site, module=self.path(site.module), weight=self.tensors.get(site.weight, site.weight))

    def dim(self, dim: Dim) -> Dim:
        return self.nodes[dim] if isinstance(dim, np.ndarray) else dim

    def track(self, track: Track | None) -> Track | None:
        """Equal for equal tracks: consumers of one activation go on reading one."""
        if track is None:
            return None
        if track not in self._tracks:
            self._tracks[track] = replace(track, dims=tuple(map(self.dim, track.dims)))
        return self._tracks[track]
