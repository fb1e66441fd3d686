"""The loss of a segment: what passes out of it along the gradient that came back there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Along(torch.autograd.Function):
    """`Σ x · g`, whose gradient is `g` to the bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(g)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.dot(x.reshape(-1).to(wide), g.reshape(-1).to(wide))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = ctx.saved_tensors
        return g, None


def along(x: Tensor, gradient: Tensor) -> Tensor:
    """A loss of which `gradient` is the gradient at `x`, float32 or float64 []."""
    made: Tensor = _Along.apply(x, gradient)
    return made
