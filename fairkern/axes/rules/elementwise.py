"""Operators that work position by position, with broadcasting: dimensions that meet are cut together.

`pointwise` also serves every operator that ATen tags `torch.Tag.pointwise`, so only the untagged are listed.
"""

from __future__ import annotations

import numpy as np

from fairkern.axes.graph import CONSTANT, UNIFORM, Dim, Track
from fairkern.axes.rules._call import Call, Rule


def broadcast(call: Call, tracks: list[Track], ndim: int) -> list[Dim]:
    """Dimensions of the result of broadcasting `tracks` against each other, right-aligned."""
    dims: list[Dim] = []
    for position in range(ndim):
        state: Dim | None = None
        for track in tracks:
            i = position - (ndim - len(track.sizes))
            if i < 0 or track.sizes[i] == 1:
                continue
            here = track.dims[i]
            state = here if state is None else call.graph.meet(state, here, f"meets a fixed size in {call.where}")
        dims.append(CONSTANT if state is None else state)
    return dims


def pointwise(call: Call) -> list[Track]:
    tracks = [call.track(t) for t in call.tensors]
    if not any(t.tracked for t in tracks):
        uniform = bool(tracks) and all(d is UNIFORM for t in tracks for d in t.dims)
        return [Track.uniform(o.shape) if uniform else Track.constant(o.shape) for o in call.outputs]
    dims = broadcast(call, tracks, len(call.sizes))
    return [call.out(dims)[0] for _ in call.outputs]


def same(call: Call) -> list[Track]:
    """The result is the first argument, cast, copied or aliased: still the same parameter, if it was one."""
    track = call.track(call.tensors[0])
    return [Track(track.sizes, track.dims, track.source)]


def copy_into(call: Call) -> list[Track]:
    """`a.copy_(b)`: what is written into tensors that the trace does not follow stays."""
    target, value = call.track("self"), call.track("src")
    if value.tracked and not target.tracked:
        call.freeze_all(f"is written into an untracked tensor by {call.where}")
        return [target]
    return pointwise(call)


def fill(call: Call) -> list[Track]:
    track = call.track("self")
    return [track if track.tracked else Track.uniform(track.sizes)]


def created_uniform(call: Call) -> list[Track]:
    return [Track.uniform(o.shape) for o in call.outputs]


def prelu(call: Call) -> list[Track]:
    """`weight` is `[1]` or `[C]`, and C is dimension 1 of the input."""
    x, weight = call.track("self"), call.track("weight")
    dims = list(x.dims)
    w = weight.dims[0] if len(weight.sizes) == 1 else CONSTANT
    if len(weight.sizes) == 1 and weight.sizes[0] > 1 and len(dims) > 1:
        dims[1] = call.graph.meet(dims[1], w, f"meets a fixed size in {call.where}")
    elif isinstance(w, np.ndarray):
        return pointwise(call)
    return call.out(dims)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("clone", "_to_copy", "detach", "alias", "contiguous", "lift_fresh", "lift", "view_of", "positive"), same
    ),
    **dict.fromkeys(
        ("hardswish_", "native_dropout", "rrelu_with_noise", "where", "masked_fill", "masked_fill_", "clamp"), pointwise
    ),
    **dict.fromkeys(("_prelu_kernel", "bernoulli", "bernoulli_", "gelu", "silu", "mish"), pointwise),
    **dict.fromkeys(("fill", "fill_", "zero_"), fill),
    **dict.fromkeys(
        ("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        created_uniform,
    ),
    **dict.fromkeys(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"), created_uniform),
    "copy_": copy_into,
    "prelu": prelu,
}
