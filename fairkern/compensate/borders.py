"""Padded borders: how much of a convolution's kernel meets what does not change from place to place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.types import Scores, Tap

_OWN = frozenset(
    kind.forward
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)


def grids_of(taps: Iterable[Tap], scores: Scores) -> Mapping[tuple[int, ...], int]:
    """Sizes of what a module reads at different taps, and how many samples had them.

    Empty where a function is given the weight instead: how it pads is not known.
    """
    grids: Counter[tuple[int, ...]] = Counter()
    for tap in taps:
        if any(site.weight for site in tap.sites):
            return {}
        grids.update(scores.grids.get(tap.name, {}))
    return grids


def kernel_shares(module: nn.Module, grids: Mapping[tuple[int, ...], int]) -> Tensor | None:
    """Per position of the kernel, the share of outputs to which it carries an input and not padding. Float64 [k, …].

    A constant `b` in every place of a channel adds `Σ_k W[k] b` to an output in the middle, and less where the kernel
    reaches over a border that is padded with zeros. On average over the outputs that is `Σ_k share[k] W[k] b`, which
    is what a bias has to take: the constant with the least squared error. A transposed convolution reaches each of its
    outputs with a part of its kernel.

    `grids`: sizes of what the module reads, and how many samples had them; weighed by their outputs.
    None: the whole kernel counts everywhere (no convolution, no padding with zeros, a subclass with a forward of its
    own, or sizes that are not known).
    """
    if not isinstance(module, nn.modules.conv._ConvNd) or module.padding_mode != "zeros":
        return None
    if type(module).forward not in _OWN:  # how it pads is not known (a causal convolution)
        return None
    known = {grid: samples for grid, samples in grids.items() if len(grid) == len(module.kernel_size)}
    carried, outputs = torch.zeros(module.kernel_size, dtype=torch.float64, device="cpu"), 0
    for grid, samples in known.items():
        counts = [_counts(module, d, n) for d, n in enumerate(grid)]
        carried += samples * _outer([reached for reached, _ in counts])
        outputs += samples * int(np.prod([made for _, made in counts]))
    return carried / outputs if outputs else None


def _counts(module: nn.modules.conv._ConvNd, d: int, n: int) -> tuple[Tensor, int]:
    """Along one dimension of `n` inputs: per kernel position the outputs it carries an input to, and all outputs."""
    kernel, stride, dilation = module.kernel_size[d], module.stride[d], module.dilation[d]
    reach = dilation * (kernel - 1)
    if module.transposed:
        assert not isinstance(module.padding, str)
        made = (n - 1) * stride - 2 * module.padding[d] + reach + module.output_padding[d] + 1
        first, counted, limit, step = -module.padding[d], n, made, stride
    else:
        before, after = _padding(module, d, reach)
        made = (n + before + after - reach - 1) // stride + 1
        first, counted, limit, step = -before, made, n, stride
    outputs, positions = (torch.arange(count, device="cpu") for count in (counted, kernel))
    places = first + step * outputs[:, None] + dilation * positions
    return ((places >= 0) & (places < limit)).double().sum(0), made


def _padding(module: nn.modules.conv._ConvNd, d: int, reach: int) -> tuple[int, int]:
    if isinstance(module.padding, str):
        return (reach // 2, reach - reach // 2) if module.padding == "same" else (0, 0)
    return module.padding[d], module.padding[d]


def _outer(counts: Sequence[Tensor]) -> Tensor:
    made = torch.ones((), dtype=torch.float64, device="cpu")
    for along in counts:
        made = made[..., None] * along
    return made


def within(shift: Tensor, shares: Tensor | None) -> Tensor:
    """What a constant adds through each position of the kernel (the last dimensions), weighed by these shares."""
    return shift if shares is None else shift * shares.to(shift)
