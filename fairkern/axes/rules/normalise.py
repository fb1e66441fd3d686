"""Normalisation layers: BatchNorm goes along channel by channel, the others tie what they run over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch.nn.modules.batchnorm import _NormBase

from fairkern.axes.dims import CONSTANT, Dim, Track
from fairkern.axes.facts import BatchNormalisation, GroupNormalisation
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.registry import rule


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def batch_norm(call: Call) -> list[Track]:
    x = call.track("input")
    dims = list(x.dims)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.given(name):
            dims[1] = call.graph.meet(dims[1], call.track(name).dims[0], f"meets a fixed size in {call.where}")
    if call.args.get("train", call.args.get("training", False)) and not call.training:
        for i, d in enumerate(x.dims):
            if i != 1:
                call.graph.freeze(d, f"statistics are taken over it in {call.where}")
    inside = call.inside
    if inside.input is not None and isinstance(inside.module, _NormBase) and len(inside.input.dims) > 1:
        channels = inside.input.dims[1]
        if isinstance(channels, np.ndarray) and len(channels) == inside.module.num_features:
            call.graph.batch_norms.append(BatchNormalisation(inside.site.module, channels))
    return [call.out(dims)[0]] + [_statistic(o.shape, dims[1], x.sizes[1]) for o in call.outputs[1:]]


def _statistic(shape: tuple[int, ...], channel: Dim, n: int) -> Track:
    return Track((n,), (channel,)) if tuple(shape) == (n,) and n > 1 else Track.constant(shape)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> list[Track]:
    x = call.track("input")
    inner = len(call.args["normalized_shape"])
    kind = "RMS norm" if call.name == "_fused_rms_norm" else "layer norm"
    for i in range(len(x.dims) - inner, len(x.dims)):
        call.graph.freeze(x.dims[i], f"{kind} runs over it in {call.where}")
    for name in ("weight", "bias"):
        if call.given(name):
            for d in call.track(name).dims:
                call.graph.freeze(d, f"{kind} runs over it in {call.where}")
    return [call.out(x.dims)[0]] + [Track.constant(o.shape) for o in call.outputs[1:]]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Track]:
    """Each group of channels is normalised alone, so that whole groups can go."""
    x, graph = call.track("input"), call.graph
    channels, groups = x.dims[1], int(call.args["group"])
    for name in ("weight", "bias"):
        if call.given(name):
            channels = graph.meet(channels, call.track(name).dims[0], f"meets a fixed size in {call.where}")
    for d in x.dims[2:]:
        graph.freeze(d, f"group norm runs over it in {call.where}")
    if isinstance(channels, np.ndarray):
        if groups == 1:
            graph.freeze(channels, f"group norm runs over it in {call.where}")
        else:
            whole = graph.new(groups)
            graph.join(np.repeat(whole, len(channels) // groups), channels)
            graph.group_norms.append(GroupNormalisation(call.inside.site.module, channels, whole))
            call.note_sizes([whole])
    return [call.out([x.dims[0], channels, *[CONSTANT] * (len(x.dims) - 2)])[0]] + [
        Track.constant(o.shape) for o in call.outputs[1:]
    ]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Track]:
    """`g · v / ‖v‖`, each slice along `dim` normalised alone.

    Along `dim` the result goes by the name of `g`: a zero there silences a slice, zeros in `v` make it 0 / 0. Along the
    others by that of `v`: what is zero there adds nothing to the norm.
    """
    v, g = call.track("v"), call.track("g")
    dim = wrap(call.args["dim"], len(v.dims))
    for i in range(len(v.dims)):
        if i != dim and not call.summed(v, i):
            call.graph.freeze(v.dims[i], f"weight norm runs over it in {call.where}")
    dims = list(v.dims)
    dims[dim] = call.graph.meet(dims[dim], g.dims[dim], f"meets a fixed size in {call.where}")
    source = g.source
    if source is not None:
        others = v.source.axes if v.source is not None else (None,) * len(v.dims)
        axes = tuple(
            axis if i == dim else other for i, (axis, other) in enumerate(zip(source.axes, others, strict=True))
        )
        source = replace(source, axes=axes, same=False)
    norms = Track(g.sizes, tuple(dims[dim] if i == dim else CONSTANT for i in range(len(g.sizes))))
    return [*call.out(dims, source), norms]
