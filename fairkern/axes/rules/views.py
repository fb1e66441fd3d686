"""Operators that move positions without arithmetic: reshape, permute, split, pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Track, Uniform
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule
from fairkern.axes.unless import Unless


def permuted(call: Call, order: list[int]) -> list[Track]:
    track = call.track("self")
    return _same_values(call.moved([track.dims[i] for i in order], track, order), track)


def _same_values(made: list[Track], track: Track) -> list[Track]:
    """What was moved points where it pointed."""
    return made if track.indexes is None else [replace(m, indexes=track.indexes) for m in made]


@rule("permute")
def permute(call: Call) -> list[Track]:
    n = len(call.sizes)
    return permuted(call, [wrap(d, n) for d in call.args["dims"]])


@rule("transpose", "t", "transpose_", "t_")
def transpose(call: Call) -> list[Track]:
    n = len(call.sizes)
    order = list(range(n))
    if n > 1:
        i, j = (0, 1) if call.name in ("t", "t_") else (wrap(call.args["dim0"], n), wrap(call.args["dim1"], n))
        order[i], order[j] = order[j], order[i]
    return permuted(call, order)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "view_copy")
def reshape(call: Call) -> list[Track]:
    """Blocks of input and output dimensions with equal products correspond; size 1 belongs to none."""
    track = call.track("self")
    if track.sizes == call.sizes:
        return [replace(track, mixed=())]
    if 0 in call.sizes:
        call.freeze_all(f"is reshaped without elements by {call.where}")
        return [Track.constant(call.sizes)]
    before = [(n, d, i) for i, (n, d) in enumerate(zip(track.sizes, track.dims, strict=True)) if n != 1]
    after = [i for i, n in enumerate(call.sizes) if n != 1]
    dims: list[Dim] = [CONSTANT] * len(call.sizes)
    origin: list[int | tuple[int, ...] | None] = [None] * len(call.sizes)
    i = k = 0
    while i < len(before) and k < len(after):
        taken, made = [before[i]], [after[k]]
        left, right = before[i][0], call.sizes[after[k]]
        i, k = i + 1, k + 1
        while left != right:
            if left < right:
                taken.append(before[i])
                left *= before[i][0]
                i += 1
            else:
                made.append(after[k])
                right *= call.sizes[after[k]]
                k += 1
        carrier = _carrier(taken)
        if carrier is None and len(made) == 1:
            carrier = tuple(i for _, _, i in taken)
        for place in made:
            origin[place] = carrier
        merged = call.graph.merge([n for n, _, _ in taken], [d for _, d, _ in taken])
        for place, dim in zip(made, call.graph.split(merged, [call.sizes[p] for p in made]), strict=True):
            dims[place] = dim
    _note(call, dims)
    return _same_values(call.moved(dims, track, origin), track)


def _carrier(taken: Sequence[tuple[int, Dim, int]]) -> int | tuple[int, ...] | None:
    """Of dimensions that become others the only one that may hold units: what those hold lies along it."""
    tracked = [i for _, dim, i in taken if isinstance(dim, np.ndarray)]
    return taken[0][2] if len(taken) == 1 else tracked[0] if len(tracked) == 1 else None


def _note(call: Call, dims: list[Dim]) -> None:
    """What a product of several dimensions (einsum) makes of its own accord, no attribute was given to it."""
    if call.function is None:
        call.note_sizes(dims)


@rule("squeeze", "unsqueeze", "squeeze_", "unsqueeze_")
def squeeze(call: Call) -> list[Track]:
    """Only sizes of 1 come or go: the other dimensions follow in order."""
    track = call.track("self")
    real = [(d, i) for i, (n, d) in enumerate(zip(track.sizes, track.dims, strict=True)) if n != 1]
    dims: list[Dim] = []
    origin: list[int | None] = []
    for n in call.sizes:
        dim, place = real.pop(0) if n != 1 else (CONSTANT, None)
        dims.append(dim)
        origin.append(place)
    return _same_values(call.moved(dims, track, origin), track)


@rule("expand")
def expand(call: Call) -> list[Track]:
    track = call.track("self")
    extra = len(call.sizes) - len(track.sizes)
    dims: list[Dim] = [Uniform() for _ in range(extra)]
    for n, d, m in zip(track.sizes, track.dims, call.sizes[extra:], strict=True):
        dims.append(Uniform() if n == 1 and m != 1 else d)
    _note(call, dims)
    return call.out(dims)


@rule("select")
def select(call: Call) -> list[Track]:
    track = call.track("self")
    dim = wrap(call.args["dim"], len(track.sizes))
    reason, nodes = f"one position is selected by {call.where}", track.dims[dim]
    if isinstance(nodes, np.ndarray):
        call.graph.freeze(nodes[[call.args["index"]]], reason)
        call.graph.freeze(nodes, reason, Unless.PROVEN)  # the others, if the number still points there
    rest = [i for i in range(len(track.sizes)) if i != dim]
    (made,) = call.moved([track.dims[i] for i in rest], track, rest)
    part = track.sizes[dim] > 1  # of one position the whole is selected
    return [replace(made, source=made.source and replace(made.source, part=made.source.part or part))]


@rule("unbind")
def unbind(call: Call) -> list[Track]:
    track = call.track("self")
    dim = wrap(call.args.get("dim", 0), len(track.sizes))
    call.graph.freeze(track.dims[dim], f"is taken apart by {call.where}")
    rest = [d for i, d in enumerate(track.dims) if i != dim]
    return [Track(tuple(o.shape), tuple(rest)) for o in call.outputs]


@rule("slice")
def slice_(call: Call) -> list[Track]:
    track = call.track("self")
    dim = wrap(call.args["dim"], len(track.sizes))
    n = track.sizes[dim]
    start, end, step = slice(call.args["start"], call.args["end"], call.args["step"]).indices(n)
    dims = list(track.dims)
    if (start, end, step) == (0, n, 1):
        return call.out(dims, track.source, track.factor)
    ids = dims[dim]
    if isinstance(ids, np.ndarray):
        part = end - start
        if step > 1 and start < step and n % step == 0 and end == n:  # one of `step` interleaved parts
            for k in range(1, step):
                call.graph.join(ids[::step], ids[k::step])
        elif step == 1 and part > 1:  # equal parts stay equal, others go their own way, if the numbers follow
            call.graph.sliced(ids, start, end)
            call.graph.freeze(ids, f"is sliced by {call.where}", Unless.PROVEN)
            call.note_sizes([ids[start:end]])
        else:
            call.graph.freeze(ids, f"is sliced by {call.where}")
        dims[dim] = ids[start:end:step]
    else:
        dims[dim] = _another(ids)
    return call.moved(dims, track, range(len(dims)))


def _another(dim: Dim) -> Dim:
    """What part of a dimension is that has no nodes, or what several times it are."""
    return dim.another if isinstance(dim, Uniform) else dim


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def split(call: Call) -> list[Track]:
    """Equal parts are coupled position by position, so that they stay equal. Parts of sizes that are listed each go
    their own way, if the proof shows that the list follows; the rest that a single size leaves freezes."""
    track = call.track("self")
    dim = wrap(call.args["dim"], len(track.sizes))
    lengths = [int(o.shape[dim]) for o in call.outputs]
    ids = track.dims[dim]
    parts: list[Dim] = [ids] if len(lengths) == 1 else [_another(ids) for _ in lengths]
    if isinstance(ids, np.ndarray) and len(lengths) > 1:
        cuts = np.split(ids, np.cumsum(lengths)[:-1])
        parts = list(cuts)
        if lengths == [1] * len(lengths):
            call.graph.freeze(ids, f"is taken apart by {call.where}")
        elif len(set(lengths)) == 1:
            for other in cuts[1:]:
                call.graph.join(cuts[0], other)
            call.note_sizes(cuts[:1])
        else:
            reason = f"is split into unequal parts by {call.where}"
            listed = call.name == "split_with_sizes"
            call.graph.freeze(ids, reason, Unless.PROVEN if listed else Unless.LISTED)
            call.note_sizes(cuts if listed else ())
    return [
        Track(
            tuple(o.shape), tuple(part if i == dim else d for i, d in enumerate(track.dims)), track.source, track.factor
        )
        for o, part in zip(call.outputs, parts, strict=True)
    ]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Track]:
    """Sums, means or maxima over rows of a table."""
    table = call.track("weight")
    held = [d for t in call.tensors if t is not call.args["weight"] for d in call.track(t).dims]
    for dim in (table.dims[0], *held):
        call.graph.freeze(dim, f"rows are looked up by {call.where}")
    return [call.out([CONSTANT, table.dims[1]])[0], *(Track.constant(o.shape) for o in call.outputs[1:])]


@rule(
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
)
def pad(call: Call) -> list[Track]:
    """Padding along units (a ResNet's option A shortcut) adds positions that stay."""
    track = call.track("self")
    amounts = call.args["pad" if "pad" in call.args else "padding"]
    dims = list(track.dims)
    for k in range(len(amounts) // 2):
        i = len(dims) - 1 - k
        low, high = amounts[2 * k], amounts[2 * k + 1]
        ids = dims[i]
        if low == high == 0:
            continue
        if not isinstance(ids, np.ndarray):
            dims[i] = CONSTANT
            continue
        if low < 0 or high < 0 or call.name != "constant_pad_nd":
            call.graph.freeze(ids, f"is padded by {call.where}")
            dims[i] = CONSTANT
            continue
        reason = f"is padding made by {call.where}"
        dims[i] = np.concatenate([call.graph.frozen(low, reason), ids, call.graph.frozen(high, reason)])
    return call.out(dims)


@rule("roll", "flip")
def roll(call: Call) -> list[Track]:
    """Cyclic shifts and flips of constant dimensions; along units they depend on the length."""
    track = call.track("self")
    for d in call.args["dims"] or range(len(track.sizes)):  # without dims the whole tensor rolls as one row
        call.graph.freeze(track.dims[wrap(d, len(track.sizes))], f"is shifted by {call.where}")
    return call.out(track.dims)


@rule("repeat")
def repeat(call: Call) -> list[Track]:
    """Copies one after the other: every copy of a unit goes with it."""
    track = call.track("self")
    times = list(call.args["repeats"])
    extra = len(times) - len(track.sizes)
    dims: list[Dim] = [Uniform() for _ in range(extra)]
    for n, d, k in zip(track.sizes, track.dims, times[extra:], strict=True):
        if isinstance(d, np.ndarray):
            dims.append(np.tile(d, k))
        else:
            dims.append(d if k == 1 else Uniform() if n == 1 else _another(d))
    return call.out(dims)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[Track]:
    """[.., C·r², H, W] → [.., C, H·r, W·r]: the r² channels that make one go together."""
    track = call.track("self")
    *lead, channels, high, wide = track.dims
    _slide(call, high, wide)
    if isinstance(channels, np.ndarray):
        cube = channels.reshape(call.sizes[-3], -1)
        for k in range(1, cube.shape[1]):
            call.graph.join(cube[:, 0], cube[:, k])
        channels = cube[:, 0].copy()
        if len(channels) == 1:
            call.graph.freeze(cube, f"becomes one channel by {call.where}")
    return call.out([*lead, channels, CONSTANT, CONSTANT])


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> list[Track]:
    """[.., C, H·r, W·r] → [.., C·r², H, W]: what one channel becomes goes with it."""
    track = call.track("self")
    *lead, channels, high, wide = track.dims
    _slide(call, high, wide)
    if isinstance(channels, np.ndarray):
        channels = np.repeat(channels, call.sizes[-3] // len(channels))
    return call.out([*lead, channels, CONSTANT, CONSTANT])


def _slide(call: Call, *dims: Dim) -> None:
    for d in dims:
        call.graph.freeze(d, f"is mixed with channels by {call.where}")


@rule("native_channel_shuffle", "channel_shuffle")
def channel_shuffle(call: Call) -> list[Track]:
    """[B, g·n, ..] → [B, n·g, ..]: groups of equal size, so one position goes from each."""
    track = call.track("self")
    dims = list(track.dims)
    ids = dims[1]
    if isinstance(ids, np.ndarray):
        cube = ids.reshape(call.args["groups"], -1)
        for row in cube[1:]:
            call.graph.join(cube[0], row)
        dims[1] = np.ascontiguousarray(cube.T).reshape(-1)
    return call.out(dims)


@rule("as_strided", "as_strided_")
def as_strided(call: Call) -> list[Track]:
    """Overlapping windows, or other strides for dimensions of size 1: a dimension passes where the result has one of
    its size and stride, and no other dimension steps along it. What the others step over stays."""
    track, strides = call.track("self"), list(call.args["stride"])
    before = [(n, s) for n, s in zip(track.sizes, call.strides, strict=True) if n != 1]
    after = [(n, s) for n, s in zip(call.sizes, strides, strict=True) if n != 1]
    passing = set()
    if not call.given("storage_offset"):
        passing = {one for one in after if one in before and _alone(one, before) and _alone(one, after)}
    whole = before == after and passing.issuperset(after) and track.sizes == call.sizes
    for n, stride, dim in zip(track.sizes, call.strides, track.dims, strict=True):
        if (n, stride) not in passing:
            call.graph.freeze(dim, f"is read with other strides by {call.where}")
    held = {(n, s): d for n, s, d in zip(track.sizes, call.strides, track.dims, strict=True)}
    dims = [held[one] if (one := (n, s)) in passing else CONSTANT for n, s in zip(call.sizes, strides, strict=True)]
    return call.out(dims, track.source, track.factor) if whole else call.out(dims)


def _alone(one: tuple[int, int], steps: list[tuple[int, int]]) -> bool:
    """Whether the place along a dimension of this size and stride depends on its own steps alone: smaller strides do
    not reach its next position, larger ones step over all of it."""
    size, stride = one
    smaller = sum((n - 1) * s for n, s in steps if s < stride)
    return steps.count(one) == 1 and smaller < stride and all(s % (size * stride) == 0 for _, s in steps if s > stride)


@rule("view.dtype")
def bits(call: Call) -> list[Track]:
    """`view(dtype)`: the same memory read as another type."""
    call.freeze_all(f"is read as another type by {call.where}")
    return [Track.constant(call.sizes)]
