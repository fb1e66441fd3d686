"""Losses, where example inputs have labels: classes that targets pick stay, and whatever a loss is averaged over."""

from __future__ import annotations

from collections.abc import Sequence

from fairkern.axes.dims import Dim, Track
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import broadcast
from fairkern.axes.rules.registry import rule

_NONE = 0  # at::Reduction


def _reduced(call: Call, dims: Sequence[Dim]) -> list[Track]:
    """The loss of values with these dimensions, and constants for whatever else the operator returns."""
    if call.args.get("reduction") != _NONE:
        for dim in dims:
            call.graph.freeze(dim, f"{call.where} runs over it")
        dims = []
    return [call.out(dims)[0]] + [Track.constant(o.shape) for o in call.outputs[1:]]


@rule(
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "soft_margin_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
def by_position(call: Call) -> list[Track]:
    """A loss at every position of input and target, which are broadcast; then its mean or sum."""
    tracks = [call.track(tensor) for tensor in call.tensors]
    return _reduced(call, broadcast(call, tracks, max(len(track.sizes) for track in tracks)))


@rule("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss", "multilabel_margin_loss_forward")
def by_class(call: Call) -> list[Track]:
    """`[C]` or `[N, C, …]` against targets that are numbers of classes: a loss per sample and place."""
    x = call.track("self")
    along = min(1, len(x.dims) - 1)
    call.graph.freeze(x.dims[along], f"targets are places along it in {call.where}")
    if call.given("weight"):
        call.graph.freeze(call.track("weight").dims[0], f"targets are places along it in {call.where}")
    rest = Track(tuple(x.sizes[:along] + x.sizes[along + 1 :]), tuple(x.dims[:along] + x.dims[along + 1 :]))
    placed = [call.track("target")] if len(call.track("target").sizes) == len(rest.sizes) else []
    return _reduced(call, broadcast(call, [rest, *placed], len(rest.sizes)))


@rule("_ctc_loss", "_cudnn_ctc_loss")
def by_alignment(call: Call) -> list[Track]:
    """`[T, N, C]` against sequences of classes: everything takes part in every alignment."""
    for dim in call.track("log_probs").dims:
        call.graph.freeze(dim, f"{call.where} runs over it")
    return [Track.constant(o.shape) for o in call.outputs]
