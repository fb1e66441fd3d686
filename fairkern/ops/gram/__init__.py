"""Gram matrix and sum of a unit axis: what least-squares compensation is solved from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check, _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.gram import native, reference

__all__ = ["Gram", "gram"]


class Gram(NamedTuple):
    """Sums over samples and positions; add those of several batches."""

    gram: Tensor  # [C, C], Σ a aᵀ
    total: Tensor  # [C], Σ a
    count: int  # type: ignore[assignment]  # of vectors a, not of items: the mean is total / count


def gram(x: Tensor, dim: int = 1, *, backend: str = "auto") -> Gram:
    """Per unit axis, `Σ a aᵀ` and `Σ a` over all other dimensions, `a` being the vector along `dim`.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        dim: the dimension of the units.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        `Gram`: [C, C], exactly symmetric, [C], and the number of vectors; float32, or float64 for float64 input.
        Products and sums are in that dtype: half-precision products are exact in it; native sums are in float64
        beyond 256 vectors. NaN and Inf pass through.

    Raises:
        InputError: shapes, dtypes or dimension that cannot be used. BackendError: the backend cannot run here.

    Cost: C²·count multiply-adds (native, Triton: of the upper triangle of tiles); native reads x once, where it lies,
    Triton once per row of tiles.

    Example:
        >>> import torch
        >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        Gram(gram=tensor([[10., 14.],
                [14., 20.]]), total=tensor([4., 6.]), count=2)
    """
    x = _check.floating("x", x)
    dim = _check.dimension("dim", dim, x.ndim)
    if x.numel() == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; expected a tensor with elements")
    count = x.numel() // x.shape[dim]
    wide = _check.accumulator(x.dtype)
    chosen = resolve("gram", backend, x.device, {Backend.TRITON: _triton.unsupported(x.dtype)})
    if chosen is Backend.NATIVE:
        from fairkern.ops.gram.packed import Packed

        half = Packed.zeros(x.shape[dim], x.device)
        total = torch.zeros(x.shape[dim], dtype=torch.float64, device=x.device)
        native.add(x.movedim(dim, 0), half.flat, total)
        return Gram(half.full().to(wide), total.to(wide), count)
    if chosen is Backend.TRITON:
        from fairkern.ops.gram import triton_kernel

        return Gram(*triton_kernel.gram(x, dim), count)
    return Gram(*reference.gram(x.to(wide), dim), count)
