"""Fake quantisation: rounding to a grid that has zero on it; channels pass, each with a scale of its own or not."""

from __future__ import annotations

from fairkern.axes.dims import Track
from fairkern.axes.rules._call import Call, wrap
from fairkern.axes.rules.computed import computed
from fairkern.axes.rules.registry import rule


@rule(
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "_fake_quantize_learnable_per_tensor_affine",
)
def per_tensor(call: Call) -> list[Track]:
    source, factor = computed(call)
    dims = call.track("self").dims
    return [call.out(dims, source, factor)[0], *(call.out(dims)[0] for _ in call.outputs[1:])]


@rule("fake_quantize_per_channel_affine_cachemask", "_fake_quantize_learnable_per_channel_affine")
def per_channel(call: Call) -> list[Track]:
    return _on_rows(call, ("scale", "zero_point"), call.args["axis"])


@rule("_fused_moving_avg_obs_fq_helper")
def observed(call: Call) -> list[Track]:
    """An observer that is on takes the range of its tensor, and with that the grid, from every position."""
    track = call.track("self")
    if bool(call.args["observer_on"].item()):
        reason = (
            f"an observer takes its range in {call.where}: while units are looked for and cut, switch it off by "
            "model.apply(torch.ao.quantization.disable_observer)"
        )
        for dim in track.dims:
            call.graph.freeze(dim, reason)
    if not call.args["per_row_fake_quant"]:
        return per_tensor(call)
    return _on_rows(call, ("running_min", "running_max", "scale", "zero_point"), call.args["ch_axis"])


def _on_rows(call: Call, held: tuple[str, ...], axis: int) -> list[Track]:
    """`held`: what there is of every position along `axis`."""
    track = call.track("self")
    dims, at = list(track.dims), wrap(axis, len(track.dims))
    for name in held:
        other = call.track(name)
        if other.sizes == (track.sizes[at],):
            dims[at] = call.graph.meet(dims[at], other.dims[0], f"meets a fixed size in {call.where}")
    source, factor = computed(call)
    return [call.out(dims, source, factor)[0], *(call.out(dims)[0] for _ in call.outputs[1:])]
