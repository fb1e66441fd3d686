"""Operators that work position by position, with broadcasting: dimensions that meet are cut together.

`pointwise` also serves every operator that ATen tags `torch.Tag.pointwise`, so only the untagged are listed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Track, Uniform
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.computed import computed
from fairkern.axes.rules.registry import rule


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
        dims.append(CONSTANT if state is None else state.filled if isinstance(state, Uniform) else state)
    return dims


@rule(
    "hardswish_",
    "native_dropout",
    "rrelu_with_noise",
    "where",
    "masked_fill",
    "masked_fill_",
    "clamp",
    "complex",
    "polar",
    "_prelu_kernel",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "log_sigmoid_forward",
    "copy_",
    "max.other",
    "min.other",
    "leaky_relu",  # this and what follows have the tag in newer versions of torch alone
    "leaky_relu_",
    "ldexp.Tensor",
    "ldexp_",
)
def pointwise(call: Call) -> list[Track]:
    dims = broadcast(call, [call.track(t) for t in call.tensors], len(call.sizes))
    source, factor = computed(call)
    return [call.out(dims, source, factor)[0], *(call.out(dims)[0] for _ in call.outputs[1:])]


@rule("clone", "_to_copy", "detach", "alias", "contiguous", "lift_fresh", "lift", "positive")
def same(call: Call) -> list[Track]:
    """The result is the first argument, cast, copied or aliased: still the same parameter, if it was one."""
    track = call.track(call.tensors[0])
    return [replace(track, mixed=())]


@rule("fill", "fill_", "zero_")
def fill(call: Call) -> list[Track]:
    track = call.track("self")
    if call.name != "zero_":
        track = replace(track, source=None, factor=None)
    return [track if track.tracked else Track.uniform(track.sizes)]


@rule("ones", "full", "new_ones", "new_full", "empty", "new_empty", "empty_strided", "new_empty_strided")
def created_uniform(call: Call) -> list[Track]:
    return [Track.uniform(o.shape) for o in call.outputs]


@rule("zeros", "new_zeros")
def created_zero(call: Call) -> list[Track]:
    return [Track.zeros(o.shape) for o in call.outputs]


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def created_like(call: Call) -> list[Track]:
    """`zeros_like` and its kin: as long as the tensor that they are modelled on."""
    track = call.track("self")
    zeros = track.source if call.name == "zeros_like" else None
    return call.out(track.dims, zeros and replace(zeros, silent=True, same=False))


@rule("bernoulli", "bernoulli_", "rand_like", "randn_like", "normal_", "uniform_", "exponential_")
def drawn(call: Call) -> list[Track]:
    """Random numbers for every position of a tensor: no two are alike. In train mode that is dropout's noise."""
    dims = call.track("self").dims
    return call.out([d if isinstance(d, np.ndarray) else Uniform() if call.training else CONSTANT for d in dims])


@rule("glu")
def glu(call: Call) -> list[Track]:
    """`a · σ(b)` for the two halves of a dimension: they are cut alike."""
    x = call.track("self")
    dims = list(x.dims)
    i = wrap(call.args["dim"], len(dims))
    ids = dims[i]
    if isinstance(ids, np.ndarray):
        first, second = np.split(ids, 2)
        call.graph.join(first, second)
        dims[i] = first
    return call.out(dims)


@rule("prelu")
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
