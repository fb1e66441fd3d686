"""Project the positions of every unit onto shared directions, for the sliced distance."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check, _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.project import native, reference
from fairkern.options import whole

__all__ = ["directions", "project"]

_MOST = 2**31


def project(
    x: Tensor,
    directions: Tensor,
    *,
    rows: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`out[n, c, :] = x[n, c, ...].flatten() @ directions`, or of `x[rows[n]]`.

    Args:
        x: [N, C, D…] activations, D the product of all later dimensions (1 for [N, C]); float32, float64,
            bfloat16 or float16.
        directions: [D, P] float32 or float64, as from `directions(d, p, seed)`. With D = 1 there is nothing to
            choose between: pass `directions(1, 1, seed)`, which is 1, or do not project at all.
        rows: int64 [R], samples of x to project, in this order; default: all N.
        out: [R or N, C, P] contiguous, of the result's dtype, to write into; default: a new tensor.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [R or N, C, P], `out` if given; float32, or float64 for float64 `x`. Products and sums are in that dtype.
        Native: every product and its addition rounded once, in the order of the positions: the same bits for a sample
        whatever else is in the batch, on any number of threads and any instruction set.

    Raises:
        InputError: shapes, dtypes or devices that do not fit. BackendError: the backend cannot run here.

    Cost: N·C·D·P multiply-adds. "native" and "triton" read `x` once, where it lies, if its positions are one run in
    memory (contiguous, channels-last), otherwise a copy; "reference" copies and widens.

    Example:
        >>> project(torch.ones(2, 3, 2, 2), torch.full((4, 1), 0.5)).shape
        torch.Size([2, 3, 1])
    """
    x, directions = _check.floating("x", x), _check.floating("directions", directions)
    _check.same_device(x=x, directions=directions)
    if x.ndim < 2:
        raise InputError(f"x has shape {tuple(x.shape)}; expected [N, C, D…]")
    positions = x.shape[2:].numel()
    if directions.ndim != 2 or directions.shape[0] != positions:
        raise InputError(
            f"directions have shape {tuple(directions.shape)}; expected [{positions}, P] for x {tuple(x.shape)}"
        )
    chosen = resolve("project", backend, x.device, {Backend.TRITON: _triton.unsupported(x.dtype)})
    wide = _check.accumulator(x.dtype)
    if rows is not None:
        rows = _check.index("rows", rows, len(x), x.device)
    made = (len(x) if rows is None else len(rows), x.shape[1], directions.shape[1])
    if out is not None:
        _check.same_device(x=x, out=_check.tensor("out", out))
        if tuple(out.shape) != made or out.dtype != wide or not out.is_contiguous():
            raise InputError(f"out is {out.dtype} of shape {tuple(out.shape)}; expected contiguous {wide} {made}")
    if chosen is not Backend.REFERENCE:
        result = torch.empty(made, dtype=wide, device=x.device) if out is None else out
        if chosen is Backend.NATIVE:
            return native.project(x, directions.to(wide), rows, result)
        from fairkern.ops.project import triton_kernel

        return triton_kernel.project(x, directions.to(wide), rows, result)
    if rows is not None:
        x = x.index_select(0, rows)
    return reference.project(x.reshape(*x.shape[:2], positions).to(wide), directions.to(wide), out)


def directions(d: int, p: int, seed: int) -> Tensor:
    """`p` random unit vectors of `d` dimensions, uniform on the sphere, as columns.

    Drawn on the CPU from a generator of their own, so they are the same for every device and the global random
    state is untouched. For d = 1 every direction is +1 or −1 and gives the same distance: the result is one
    column of 1, whatever `p`.

    Returns:
        float32 [d, p], or [1, 1] for d = 1.

    Raises:
        InputError: d or p below 1.

    Example:
        >>> directions(3, 2, seed=0).norm(dim=0).allclose(torch.ones(2))
        True
    """
    d, p, seed = whole("d", d, 1, _MOST), whole("p", p, 1, _MOST), whole("seed", seed, 0, 2**64 - 1)
    return torch.ones(1, 1, dtype=torch.float32, device="cpu") if d == 1 else reference.directions(d, p, seed)
