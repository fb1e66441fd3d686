"""Tensors that are put one beside the other: concatenated, or stacked along a new dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Track, Uniform
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule
from fairkern.axes.unless import Unless


@rule("cat")
def concatenate(call: Call) -> list[Track]:
    ndim = len(call.sizes)
    dim = wrap(call.args["dim"], ndim)
    tracks = [t for t in map(call.track, call.tensors) if len(t.sizes) == ndim]  # legacy: empty 1-D is skipped
    dims: list[Dim] = []
    for i in range(ndim):
        if i != dim:
            state: Dim = tracks[0].dims[i]
            for track in tracks[1:]:
                state = call.graph.meet(state, track.dims[i], f"meets a fixed size in {call.where}")
            dims.append(state)
        elif any(isinstance(t.dims[i], np.ndarray) or _zero(t.dims[i]) for t in tracks):
            dims.append(np.concatenate([_part(call, t.dims[i], t.sizes[i]) for t in tracks]))
        else:
            dims.append(CONSTANT)
    return [replace(call.out(dims)[0], indexes=_indexes(call, tracks))]


def _indexes(call: Call, tracks: Sequence[Track]) -> np.ndarray | None:
    """What the values of all of these point into, if it is as many for each: the first and the second best expert."""
    found = [t.indexes for t in tracks if t.indexes is not None]
    if len(found) < len(tracks) or len({len(nodes) for nodes in found}) != 1:
        return None
    for nodes in found[1:]:
        call.graph.join(found[0], nodes)
    return found[0]


def _part(call: Call, dim: Dim, n: int) -> np.ndarray:
    """The positions of a part of what is concatenated. Those of zeros (a first state, beside an input) go with what
    reads them, if the proof shows that their number follows."""
    if isinstance(dim, np.ndarray):
        return dim
    nodes = call.graph.new(n)
    if _zero(dim):
        call.graph.meet(nodes, dim, "")
    reason = f"a part of fixed size is concatenated by {call.where}"
    call.graph.freeze(nodes, reason, Unless.PROVEN if _zero(dim) else Unless.LISTED)
    return nodes


def _zero(dim: Dim) -> bool:
    return isinstance(dim, Uniform) and dim.zero


@rule("stack")
def stack(call: Call) -> list[Track]:
    dim = wrap(call.args["dim"], len(call.sizes))
    tracks = [call.track(t) for t in call.tensors]
    dims = list(tracks[0].dims)
    for track in tracks[1:]:
        dims = [
            call.graph.meet(a, b, f"meets a fixed size in {call.where}") for a, b in zip(dims, track.dims, strict=True)
        ]
    dims.insert(dim, CONSTANT)
    return call.out(dims)
