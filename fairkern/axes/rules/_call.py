"""What a rule sees of one operator call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairkern.axes.dims import CONSTANT, Source, Track
from fairkern.axes.facts import Contraction, GivenSize
from fairkern.axes.graph import Graph
from fairkern.types import Axis, CallSite


@dataclass(frozen=True)
class ModuleCall:
    """The innermost module that is running."""

    site: CallSite
    module: torch.nn.Module | None
    input: Track | None  # its first tensor argument as it was on entry, if it does nothing else with it
    entry: Track | None = None  # the same, whatever it does with it
    slots: int | None = None  # fused experts: how many of them a token is sent to


@dataclass(frozen=True)
class FunctionCall:
    """The function call under way that is given weights and activations; see `fairkern.model.weight_calls`."""

    numbers: Mapping[str, int]
    given: tuple[Track, ...]  # its tensor arguments as they were on entry


@dataclass(frozen=True)
class Call:
    """One call: `args` by name with defaults filled in, tensors replaced by nothing (ask `track`)."""

    name: str  # "convolution", without namespace and overload
    args: Mapping[str, Any]
    tensors: Sequence[torch.Tensor]  # every tensor argument, lists flattened, in order
    outputs: Sequence[torch.Tensor]
    graph: Graph
    inside: ModuleCall
    function: FunctionCall | None
    lookup: Callable[[torch.Tensor], Track]
    count_flops: bool
    strides: tuple[int, ...]  # of the first tensor before the call, where the operator reads by strides; else empty
    still: Callable[[Iterable[torch.Tensor]], bool]  # whether no input changes any of these that it is given
    training: bool  # the run in train mode, which only looks for what eval mode did not reach

    def track(self, arg: str | torch.Tensor) -> Track:
        value = self.args[arg] if isinstance(arg, str) else arg
        return self.lookup(value)

    def given(self, arg: str) -> bool:
        return self.args.get(arg) is not None

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)

    @functools.cached_property
    def where(self) -> str:
        module = self.inside.site.module
        return f"{self.name} in {module}" if module else self.name

    def out(self, dims: Sequence[Any], source: Source | None = None, factor: Source | None = None) -> list[Track]:
        """The usual answer: one tracked output; size-1 dimensions hold no units."""
        sizes = self.sizes
        dims = tuple(CONSTANT if n == 1 else d for n, d in zip(sizes, dims, strict=True))
        return [Track(sizes, dims, source, factor)]

    def moved(self, dims: Sequence[Any], track: Track, places: Sequence[int | tuple[int, ...] | None]) -> list[Track]:
        """One output whose dimension `i` is dimension `places[i]` of `track` (None: of no one), with what it is of."""
        source, factor = (s and s.at(places) for s in (track.source, track.factor))
        return self.out(dims, source, factor)

    def summed(self, track: Track, dim: int) -> bool:
        """A sum runs over a dimension: whether what a parameter silences there adds nothing to it, so that it can go.

        Then it has to be silenced at this parameter too.
        """
        source, nodes = track.silenced, track.dims[dim]
        axis = source and source.axes[dim]
        if not isinstance(axis, Axis) or not isinstance(nodes, np.ndarray):
            return False
        made = Contraction(axis, nodes, None, -1, self.inside.site, self.where, self.training, summed=True)
        self.graph.contractions.append(made)
        return True

    def note_sizes(self, dims: Sequence[Any]) -> None:
        """The call was given these sizes, perhaps by an attribute of its module that must follow a cut."""
        for dim in dims:
            if isinstance(dim, np.ndarray):
                self.graph.given_sizes.append(GivenSize(self.inside.site.module, dim))

    def freeze_all(self, reason: str) -> None:
        for tensor in self.tensors:
            for dim in self.track(tensor).dims:
                self.graph.freeze(dim, reason)


def wrap(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim
