"""Operators that read or write at places that a tensor names: gather, scatter, rows added or put."""

from __future__ import annotations

import numpy as np
import torch

from fairkern.axes.graph import CONSTANT, Dim, Fixed, Track
from fairkern.axes.rules._call import Call, Rule, wrap
from fairkern.axes.rules.elementwise import broadcast


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


def scatter(call: Call) -> list[Track]:
    """`out[i, index[i, j]] = source[i, j]`: what the index points into lies along the dimension."""
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
        call.graph.freeze_unless_routed(dim, f"is indexed by {call.where}")
    else:
        call.graph.freeze(dim, f"is indexed by {call.where}")


def index_add(call: Call) -> list[Track]:
    """Rows of `source` added to rows of `self` along a dimension that holds no units."""
    track, source = call.track("self"), call.track("source")
    at = wrap(call.args["dim"], len(track.sizes)) if track.sizes else 0
    dims = list(track.dims)
    for i, (dim, other) in enumerate(zip(track.dims, source.dims, strict=True)):
        if i == at:
            call.graph.freeze(dim, f"is indexed by {call.where}")
            call.graph.freeze(other, f"is scattered by {call.where}")
            dims[i] = CONSTANT
        else:
            dims[i] = call.graph.meet(dim, other, f"meets a fixed size in {call.where}")
    return call.out(dims)


def index_put(call: Call) -> list[Track]:
    """`x[i, :, j] = values`: indexed dimensions are written at fixed places, the others position by position."""
    track, values = call.track("self"), call.track("values")
    indices = list(call.args["indices"])
    indices += [None] * (len(track.sizes) - len(indices))
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        call.freeze_all(f"is masked by {call.where}")
        return [Track.constant(call.sizes)]
    places = [k for k, i in enumerate(indices) if i is not None]
    for k in places:
        call.graph.freeze(track.dims[k], f"is indexed by {call.where}")
    shape = torch.broadcast_shapes(*(indices[k].shape for k in places))
    adjacent = places == list(range(places[0], places[-1] + 1))
    at = places[0] if adjacent else 0
    rest = [k for k in range(len(track.sizes)) if k not in places]
    sizes = [track.sizes[k] for k in rest]
    chosen = Track(
        (*sizes[:at], *shape, *sizes[at:]),
        (*(track.dims[k] for k in rest[:at]), *[CONSTANT] * len(shape), *(track.dims[k] for k in rest[at:])),
    )
    met = broadcast(call, [chosen, values], len(chosen.sizes))
    kept = [*met[:at], *met[at + len(shape) :]]
    dims: list[Dim] = [CONSTANT] * len(track.sizes)
    for k, dim in zip(rest, kept, strict=True):
        dims[k] = dim
    return call.out(dims)


RULES: dict[str, Rule] = {
    "gather": gather,
    **dict.fromkeys(("scatter", "scatter_"), scatter),
    **dict.fromkeys(("index_add", "index_add_"), index_add),
    **dict.fromkeys(("index_put", "index_put_", "_unsafe_index_put"), index_put),
}
