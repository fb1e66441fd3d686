"""Depthwise convolutions in float64, for which a processor's libraries have nothing but a product for every channel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)
_FEW = 64  # places of a window: each is a pass over the result


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    """What `aten::convolution` gives, but for rounding: a multiplication and an addition for each place of the window.

    None for what is no plain depthwise convolution in float64 on the CPU, one filter a channel. A hundredth of the time
    where channels are many and images small.
    """
    window = weight.shape[2:]
    if (
        transposed
        or groups < 2
        or not all(type(t) in _PLAIN and t.dtype == torch.float64 and t.device.type == "cpu" for t in (x, weight))
        or weight.shape[:2] != (groups, 1)
        or x.ndim != weight.ndim
        or x.shape[1] != groups
        or not x.is_contiguous()
        or not 0 < window.numel() <= _FEW
    ):
        return None
    steps, around, apart = (_each(values, len(window)) for values in (stride, padding, dilation))
    sizes = [
        (n + 2 * beside - gap * (places - 1) - 1) // step + 1
        for n, places, step, beside, gap in zip(x.shape[2:], window, steps, around, apart, strict=True)
    ]
    if min(sizes) < 1:
        return None  # its error is torch's
    padded = F.pad(x, [beside for beside in reversed(around) for _ in range(2)])
    made = x.new_zeros(len(x), groups, *sizes)
    if bias is not None:
        made += bias.view(-1, *(1 for _ in window))
    filters = weight.reshape(groups, -1)
    for number, place in enumerate(itertools.product(*map(range, window))):
        read: list[slice] = [slice(None), slice(None)]
        for at, gap, size, step in zip(place, apart, sizes, steps, strict=True):
            read.append(slice(at * gap, at * gap + (size - 1) * step + 1, step))
        factor = filters[:, number].view(-1, *(1 for _ in window))
        made.addcmul_(padded[tuple(read)], factor)
    return made


def _each(values: Sequence[Any], dims: int) -> list[int]:
    return [*values] * dims if len(values) == 1 else [*values]
