"""Gather and scatter: where the index was chosen among units, as experts are, the units are followed."""

from __future__ import annotations

import numpy as np
import torch

from fairkern.axes.dims import CONSTANT, Dim, Fixed, Track
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule
from fairkern.axes.unless import Unless


@rule("gather")
def gather(call: Call) -> list[Track]:
    """`out[i, j] = x[i, index[i, j]]`: the chosen of a dimension that is known to be chosen from, such as experts."""
    track, places = call.track("self"), call.track("index")
    at = wrap(call.args["dim"], len(track.sizes)) if track.sizes else 0
    dims: list[Dim] = [CONSTANT] * len(call.sizes)
    for i, dim in enumerate(track.dims):
        if i == at:
            _chosen(call, dim, places)
        elif track.sizes[i] == places.sizes[i]:
            dims[i] = call.graph.meet(dim, places.dims[i], f"meets a fixed size in {call.where}")
        else:
            call.graph.freeze(dim, f"is indexed by {call.where}")
    return call.out(dims)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(call: Call) -> list[Track]:
    """`out[i, index[i, j]] = source[i, j]`, or added to it, or the largest: what the index points into lies along the
    dimension. Along the others, positions keep to themselves where the index is the same for all of them."""
    track, places = call.track("self"), call.track("index")
    at = wrap(call.args["dim"], len(track.sizes)) if track.sizes else 0
    given = call.track("src") if isinstance(call.args.get("src"), torch.Tensor) else places
    dims: list[Dim] = [CONSTANT] * len(call.sizes)
    for i, dim in enumerate(track.dims):
        if i == at:
            pointed = places.indexes
            _chosen(call, dim, places)
            if isinstance(dim, np.ndarray):
                dims[i] = dim
            elif pointed is not None and len(pointed) == track.sizes[i]:
                dims[i] = pointed
            continue
        for other in (places, given):
            if other.sizes[i] == track.sizes[i]:
                dim = call.graph.meet(dim, other.dims[i], f"meets a fixed size in {call.where}")
            else:
                call.graph.freeze(dim, f"is written in part by {call.where}")
                call.graph.freeze(other.dims[i], f"is written in part by {call.where}")
                dim = CONSTANT
        dims[i] = CONSTANT if isinstance(dim, Fixed) else dim
    for other in (places, given):
        call.graph.freeze(other.dims[at] if other.dims else CONSTANT, f"is scattered by {call.where}")
    return call.out(dims)


def _chosen(call: Call, dim: Dim, places: Track) -> None:
    """Some positions of `dim` are picked by an index."""
    if not isinstance(dim, np.ndarray):
        return
    if places.indexes is not None and len(places.indexes) == len(dim):
        call.graph.join(dim, places.indexes)
        call.graph.freeze(dim, f"is indexed by {call.where}", Unless.ROUTED)
    else:
        call.graph.freeze(dim, f"is indexed by {call.where}")
