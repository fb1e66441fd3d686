"""Operators that write or read at places given by an index or a number: what they point into cannot be cut."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.axes.dims import CONSTANT, Dim, Fixed, Track
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule
from fairkern.axes.unless import Unless


def _stay(call: Call, dims: Iterable[Dim], how: str) -> None:
    for dim in dims:
        call.graph.freeze(dim, f"{how} by {call.where}")


def _met(call: Call, track: Track, other: Track, places: Iterable[int]) -> list[Dim]:
    """The dimensions of `track`, met by those of `other` at the same place except at `places`, which stay."""
    at = {wrap(i, len(track.sizes)) for i in places}
    out: list[Dim] = []
    for i, (a, b) in enumerate(zip(track.dims, other.dims, strict=True)):
        if i in at or track.sizes[i] != other.sizes[i]:
            _stay(call, (a, b), "is written in part")
            out.append(a if not isinstance(a, Fixed) else CONSTANT)
        else:
            met = call.graph.meet(a, b, f"meets a fixed size in {call.where}")
            out.append(met)
    return out


@rule("nonzero", "argwhere")
def places_found(call: Call) -> list[Track]:
    """Where something is not zero: the numbers that come out point into all dimensions, as those of an index do."""
    _stay(call, call.track("self").dims, "is looked through")
    return call.out([CONSTANT, CONSTANT])


@rule("index")
def index(call: Call) -> list[Track]:
    """`x[i, :, j]`: indexed dimensions are read at fixed places; the result's index dimensions are constant."""
    track = call.track("self")
    indices = list(call.args["indices"])
    places: list[int] = []
    made = position = 0
    for i in indices:
        if i is None:
            position += 1
            continue
        masks = i.dtype in (torch.bool, torch.uint8)  # as many dimensions as it has become one
        for dim in call.track(i).dims:
            call.graph.freeze(dim, f"is used as an index by {call.where}")
        span = i.ndim if masks else 1
        places += range(position, position + span)
        position += span
        made = max(made, 1 if masks else i.ndim)
    picks = iter([i for i in indices if i is not None])
    for k in places:
        _picked(call, track.dims[k], next(picks) if len(places) == sum(i is not None for i in indices) else None)
    adjacent = places == list(range(places[0], places[-1] + 1))
    at = places[0] if adjacent else 0
    rest = [d for k, d in enumerate(track.dims) if k not in places]
    return call.out([*rest[:at], *[CONSTANT] * made, *rest[at:]])


def _picked(call: Call, nodes: Dim, index: torch.Tensor | None) -> None:
    """Positions that an index picks stay; the others too, unless a proof shows that the index still points there."""
    reason = f"is indexed by {call.where}"
    mask = index is not None and index.dtype in (torch.bool, torch.uint8)
    known = index is not None and not mask and not isinstance(index, FakeTensor) and call.still([index])
    if isinstance(nodes, np.ndarray) and index is not None and known:
        call.graph.freeze(nodes[index.cpu().numpy().reshape(-1)], reason)
        call.graph.freeze(nodes, reason, Unless.PROVEN)
    else:
        call.graph.freeze(nodes, reason)


@rule("index_select")
def index_select(call: Call) -> list[Track]:
    track = call.track("self")
    dim = wrap(call.args["dim"], len(track.sizes))
    for d in (track.dims[dim], *call.track("index").dims):
        call.graph.freeze(d, f"is indexed by {call.where}")
    return call.out([CONSTANT if i == dim else d for i, d in enumerate(track.dims)])


@rule("embedding")
def embedding(call: Call) -> list[Track]:
    table = call.track("weight")
    call.graph.freeze(table.dims[0], f"rows are looked up by {call.where}")
    return call.out([*call.track("indices").dims, table.dims[1]])


@rule(
    "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "index_reduce", "index_reduce_"
)
def into_places(call: Call) -> list[Track]:
    """`index_add`, `index_copy`, `index_fill`: slices at the places of a flat index."""
    track = call.track("self")
    _stay(call, call.track("index").dims, "is used as an index")
    source = call.args.get("source")
    other = call.track("source") if isinstance(source, torch.Tensor) else Track.uniform(track.sizes)
    if len(other.sizes) != len(track.sizes):  # one value
        other = Track.uniform(track.sizes)
    return call.out(_met(call, track, other, [call.args["dim"]]))


@rule("slice_scatter", "select_scatter")
def into_slice(call: Call) -> list[Track]:
    """`slice_scatter`, `select_scatter`: a copy with one part replaced."""
    track, source = call.track("self"), call.track("src")
    dim = wrap(call.args["dim"], len(track.sizes))
    if len(source.sizes) < len(track.sizes):
        sizes, dims = list(source.sizes), list(source.dims)
        sizes.insert(dim, 1)
        dims.insert(dim, CONSTANT)
        source = Track(tuple(sizes), tuple(dims))
    return call.out(_met(call, track, source, [dim]))


@rule("index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
def index_put(call: Call) -> list[Track]:
    """`x[i, :, mask] = v`: what the indices and masks cover stays, the other dimensions meet those of the values."""
    track, values = call.track("self"), call.track("values")
    covered: list[int] = []
    indices = list(call.args["indices"])
    at, place, made = -1, 0, 1
    for index in indices:
        if index is None:
            place += 1
            continue
        masks = index.dtype in (torch.bool, torch.uint8)
        _stay(call, call.track(index).dims, "is used as an index")
        span = index.ndim if masks else 1
        made = max(made, 1 if masks else index.ndim)
        at = place if at < 0 else at
        covered += range(place, place + span)
        place += span
    _stay(call, (track.dims[i] for i in covered), "is written in part")
    rest = [i for i in range(len(track.sizes)) if i not in covered]
    at = at if covered == list(range(covered[0], covered[-1] + 1)) else 0
    # the values are broadcast to: rest before, places of the indices, rest after
    kept_sizes = [track.sizes[i] for i in rest]
    kept_dims = [track.dims[i] for i in rest]
    shape = Track(
        (*kept_sizes[:at], *[1] * made, *kept_sizes[at:]), (*kept_dims[:at], *[CONSTANT] * made, *kept_dims[at:])
    )
    n = len(shape.sizes)
    lead = len(values.sizes) - n
    if lead > 0:
        values = Track(values.sizes[lead:], values.dims[lead:])
    met = broadcast(call, [shape, values], n)
    _stay(call, met[at : at + made], "is written in part")
    met = met[:at] + met[at + made :]
    dims: list[Dim] = [CONSTANT if isinstance(d, Fixed) else d for d in track.dims]
    for i, dim in zip(rest, met, strict=True):
        dims[i] = dim
    return call.out(dims)


@rule("diagonal", "diagonal_copy")
def diagonal(call: Call) -> list[Track]:
    track = call.track("self")
    n = len(track.sizes)
    pair = {wrap(call.args["dim1"], n), wrap(call.args["dim2"], n)}
    _stay(call, (track.dims[i] for i in pair), "its diagonal is read")
    return call.out([*(d for i, d in enumerate(track.dims) if i not in pair), CONSTANT])


@rule("diag_embed")
def diag_embed(call: Call) -> list[Track]:
    track, n = call.track("self"), len(call.sizes)
    pair = {wrap(call.args["dim1"], n), wrap(call.args["dim2"], n)}
    _stay(call, track.dims[-1:], "is spread over a diagonal")
    rest = iter(track.dims[:-1])
    return call.out([CONSTANT if i in pair else next(rest) for i in range(n)])


@rule("tril", "tril_", "triu", "triu_")
def triangle(call: Call) -> list[Track]:
    track = call.track("self")
    _stay(call, track.dims[-2:], "is cut to a triangle")
    return call.out([*track.dims[:-2], *(d if not isinstance(d, Fixed) else CONSTANT for d in track.dims[-2:])])


@rule("rot90")
def rot90(call: Call) -> list[Track]:
    track = call.track("self")
    pair = {wrap(d, len(track.sizes)) for d in call.args["dims"]}
    _stay(call, (track.dims[i] for i in pair), "is turned")
    return call.out([CONSTANT if i in pair else d for i, d in enumerate(track.dims)])


@rule("bucketize", "searchsorted")
def bucketize(call: Call) -> list[Track]:
    """Which interval each value lies in; the bounds are read whole."""
    values = "input" if "input" in call.args else "self"
    bounds = next(t for t in call.tensors if t is not call.args[values])
    _stay(call, call.track(bounds).dims, "bounds intervals")
    if not isinstance(call.args[values], torch.Tensor):
        return [Track.constant(call.sizes)]
    track = call.track(values)
    if bounds.ndim > 1:
        _stay(call, track.dims, "is looked up in rows")
    return call.out(track.dims)
