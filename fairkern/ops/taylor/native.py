"""Calls the compiled Taylor sums: brings both tensors into one layout, allocates the results."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._check import accumulator

Sums = tuple[Tensor, Tensor, Tensor]


def taylor_sums(act: Tensor, grad: Tensor, dim: int, out: Sums | None = None, scale: float = 1.0, isa: int = 0) -> Sums:
    """Σ a·g, Σ_samples |Σ a·g| and Σ a per channel, the first two times `scale`; samples are dimension 0, `dim` ≥ 1.

    Added to `out`, contiguous [channels] each of one dtype, float64 or the result's.

    Read as they are: contiguous tensors, and those whose channels are innermost (channels-last, tokens). Another
    layout is copied first, and so is a `grad` whose layout differs from that of `act`.
    """
    channels = act.shape[dim]
    channels_last = not act.is_contiguous() and act.movedim(dim, -1).is_contiguous()
    if channels_last:
        act, grad, dim = act.movedim(dim, -1), grad.movedim(dim, -1), act.ndim - 1
    act, grad = act.contiguous(), grad.contiguous()
    made = torch.empty(3, channels, dtype=accumulator(act.dtype), device="cpu").unbind() if out is None else out
    signed, per_sample, activation = made
    _native.extension().taylor(
        element=_native.ELEMENTS[act.dtype],
        act=_native.address("act", act, act.dtype),
        grad=_native.address("grad", grad, act.dtype),
        samples=act.shape[0],
        before=act.shape[1:dim].numel(),
        channels=channels,
        after=act.shape[dim + 1 :].numel(),
        signed_sum=_native.address("signed", signed, signed.dtype),
        per_sample=_native.address("per_sample", per_sample, signed.dtype),
        activation=_native.address("activation", activation, signed.dtype),
        wide=signed.dtype == torch.float64,
        accumulate=out is not None,
        scale=scale,
        threads=torch.get_num_threads(),
        isa=isa,
    )
    return signed, per_sample, activation
