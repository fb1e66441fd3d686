"""Reductions, softmax, pooling and resampling: what they run over cannot be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fairkern.axes.dims import CONSTANT, Dim, Track
from fairkern.axes.facts import Ranking
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule
from fairkern.axes.unless import Unless


def _dims(call: Call, ndim: int) -> list[int]:
    dim = call.args.get("dim")
    if dim is None or (isinstance(dim, Sequence) and len(dim) == 0):
        return list(range(ndim))
    return [wrap(d, ndim) for d in (dim if isinstance(dim, Sequence) else [dim])]


@rule(
    "mean",
    "sum",
    "amin",
    "prod",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "linalg_vector_norm",
    "norm",
    "median",
    "nanmedian",
    "mode",
    "kthvalue",
    "aminmax",
    "nansum",
    "count_nonzero",
    "min",
    "any",
    "all",
    "argmin",
)
def reduction(call: Call) -> list[Track]:
    """What is reduced stays as it is, unless nobody reads the result (attention weights averaged over heads)."""
    return _reduced(call, Unless.LISTED)


def _reduced(call: Call, unless: Unless) -> list[Track]:
    x = call.track(call.tensors[0])
    over = _dims(call, len(x.dims))
    summed = [i for i in over if _adds(call) and call.summed(x, i)]
    unless = unless if call.inside.slots is None else Unless.ROUTED
    mixed = tuple((x.dims[i], f"{call.where} runs over it", unless) for i in over if i not in summed)
    if call.inside.slots is not None:
        for reason in mixed:
            call.graph.freeze(*reason)
        mixed = ()
    places: list[int | None] = [None if i in over else i for i in range(len(x.dims))]
    if len(call.sizes) != len(x.dims):
        places = [i for i in places if i is not None]
    left = [CONSTANT if i is None else x.dims[i] for i in places]
    made = call.moved(left, x, places)[0] if summed else call.out(left)[0]
    return [replace(made, mixed=mixed) for _ in call.outputs]


def _adds(call: Call) -> bool:
    """Whether a zero adds nothing to the result: sums, and norms of a positive order."""
    if call.name in ("linalg_vector_norm", "norm"):
        order = call.args.get("ord", call.args.get("p"))
        return order is None or float(order) > 0
    return call.name in ("sum", "nansum", "count_nonzero")


@rule("torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def regions(call: Call) -> list[Track]:
    """Pooling over boxes: [B, C, H, W] and [R, 5] → [R, C, h, w]; channels pass. Position-sensitive pooling makes one
    channel of h · w, one for each place, which go together."""
    x = call.track("input")
    for d in (x.dims[0], *x.dims[2:], *call.track("rois").dims):
        call.graph.freeze(d, f"is slid over by {call.where}")
    channels = x.dims[1]
    if call.name.startswith("ps_") and isinstance(channels, np.ndarray):
        cube = channels.reshape(call.sizes[1], -1)
        for k in range(1, cube.shape[1]):
            call.graph.join(cube[:, 0], cube[:, k])
        channels = cube[:, 0].copy()
    return [call.out([CONSTANT, channels, CONSTANT, CONSTANT])[0] for _ in call.outputs]


@rule("torchvision::nms")
def suppressed(call: Call) -> list[Track]:
    """Which boxes stay, by their values."""
    call.freeze_all(f"is compared with others by {call.where}")
    return [Track.constant(call.sizes)]


@rule("segment_reduce")
def segments(call: Call) -> list[Track]:
    """Stretches of one dimension are reduced to one place each."""
    data = call.track("data")
    over = wrap(call.args["axis"], len(data.dims))
    bounds = [call.track(call.args[name]) for name in ("lengths", "indices", "offsets") if call.given(name)]
    dims: list[Dim] = list(data.dims)
    for track in bounds:  # [.., segments]: the same for every position of the dimensions behind
        for i, dim in enumerate(track.dims[:-1]):
            dims[i] = call.graph.meet(dims[i], dim, f"meets a fixed size in {call.where}")
    for dim in (dims[over], *(track.dims[-1] for track in bounds)):
        call.graph.freeze(dim, f"{call.where} runs over it")
    dims[over] = CONSTANT
    return call.out(dims)


@rule("max", "amax", "argmax", "logsumexp")
def best(call: Call) -> list[Track]:
    """The largest along a dimension, and where it is: an expert at −inf is not it, and adds nothing to a logsumexp."""
    x = call.track(call.tensors[0])
    over = _dims(call, len(x.dims))
    made = _reduced(call, Unless.ROUTED if len(over) == 1 else Unless.LISTED)
    if len(over) == 1 and isinstance(ranked := x.dims[over[0]], np.ndarray) and call.name != "logsumexp":
        call.graph.rankings.append(Ranking(ranked, 1))
        if call.name != "amax":
            made[-1] = replace(made[-1], indexes=ranked)
    return made


@rule("_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort")
def along(call: Call) -> list[Track]:
    """Softmax, cumulative sums, sorts: the positions along `dim` depend on each other."""
    x = call.track(call.tensors[0])
    for i in _dims(call, len(x.dims)):
        call.graph.freeze(x.dims[i], f"{call.where} runs over it")
    return [call.out(x.dims)[0] for _ in call.outputs]


@rule("_softmax", "_safe_softmax", "softmax")
def softmax(call: Call) -> list[Track]:
    """Every position changes with every other; one at −inf is as good as gone."""
    x = call.track(call.tensors[0])
    for i in _dims(call, len(x.dims)):
        call.graph.freeze(x.dims[i], f"{call.where} runs over it", Unless.ROUTED)
    return call.out(x.dims)


@rule("topk")
def largest(call: Call) -> list[Track]:
    """The k largest along a dimension, and an index that points into it; one at −inf is not among them."""
    x = call.track("self")
    at = wrap(call.args["dim"], len(x.dims)) if x.dims else 0
    ranked = x.dims[at] if x.dims else CONSTANT
    call.graph.freeze(ranked, f"{call.where} runs over it", Unless.ROUTED)
    dims = [CONSTANT if i == at else d for i, d in enumerate(x.dims)]
    if not isinstance(ranked, np.ndarray):
        return [call.out(dims)[0] for _ in call.outputs]
    call.graph.rankings.append(Ranking(ranked, int(call.args["k"])))
    return [call.out(dims)[0], replace(call.out(dims)[0], indexes=ranked)]


_SPATIAL: dict[str, int] = {
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "avg_pool1d": 1,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
    "_adaptive_avg_pool2d": 2,
    "_adaptive_avg_pool3d": 3,
    "adaptive_avg_pool1d": 1,
    "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3,
    "max_pool1d": 1,
    "max_pool2d": 2,
    "max_pool3d": 3,
    "mkldnn_max_pool2d": 2,
    "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 2,
    "_upsample_nearest_exact3d": 3,
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_nearest3d": 3,
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "upsample_trilinear3d": 3,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
}


@rule(*_SPATIAL)
def spatial(call: Call) -> list[Track]:
    """Pooling and resampling: everything after batch and channel is slid over; channels pass."""
    x = call.track(call.tensors[0])
    n = _SPATIAL[call.name]
    lead = len(x.dims) - n
    for d in x.dims[lead:]:
        call.graph.freeze(d, f"is slid over by {call.where}")
    dims = [*x.dims[:lead], *[CONSTANT] * n]
    return [call.out(dims)[0] for _ in call.outputs]
