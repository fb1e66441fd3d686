"""`torch.ops.fairkern.*`: the operators as the dispatcher sees them, each with a fake for tracing.

Importing this module registers them. Results never alias arguments. Autograd is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops._check import accumulator
from fairkern.ops.gather import gather
from fairkern.ops.project import project
from fairkern.ops.taylor import TaylorSums, taylor_sums
from fairkern.ops.wasserstein import class_wasserstein, wasserstein_1d


@torch.library.custom_op("fairkern::class_wasserstein", mutates_args=())
def class_wasserstein_op(x: Tensor, labels: Tensor, classes: int, reduce: str) -> Tensor:
    """`classes`, the number of different labels, is an argument because the size of "pairs" follows from it."""
    result = class_wasserstein(x, labels, reduce)
    if reduce == "pairs" and len(result) != classes * (classes - 1) // 2:
        raise InputError(f"classes is {classes}; labels have another number of different values")
    return result


@class_wasserstein_op.register_fake
def _(x: Tensor, labels: Tensor, classes: int, reduce: str) -> Tensor:
    units = x.shape[1]
    shape = (classes * (classes - 1) // 2, units) if reduce == "pairs" else (units,)
    return x.new_empty(shape, dtype=accumulator(x.dtype))


@torch.library.custom_op("fairkern::taylor_sums", mutates_args=())
def taylor_sums_op(act: Tensor, grad: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three fields of `TaylorSums`."""
    sums = taylor_sums(act, grad, dim)
    return sums.signed.clone(), sums.per_sample.clone(), sums.activation.clone()  # results of a GPU share a buffer


@taylor_sums_op.register_fake
def _(act: Tensor, grad: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = (act.shape[dim],), accumulator(act.dtype)
    return act.new_empty(shape, dtype=dtype), act.new_empty(shape, dtype=dtype), act.new_empty(shape, dtype=dtype)


@torch.library.custom_op("fairkern::taylor_add", mutates_args=("signed", "per_sample", "activation"))
def taylor_add_op(
    signed: Tensor, per_sample: Tensor, activation: Tensor, act: Tensor, grad: Tensor, dim: int, scale: float
) -> None:
    """`taylor_sums` added to running sums: the three fields of its `out`."""
    taylor_sums(act, grad, dim, out=TaylorSums(signed, per_sample, activation), scale=scale)


@taylor_add_op.register_fake
def _(
    signed: Tensor, per_sample: Tensor, activation: Tensor, act: Tensor, grad: Tensor, dim: int, scale: float
) -> None:
    return None


@torch.library.custom_op("fairkern::wasserstein_1d", mutates_args=())
def wasserstein_1d_op(x: Tensor, y: Tensor, p: int) -> Tensor:
    """As the function."""
    return wasserstein_1d(x, y, p)


@wasserstein_1d_op.register_fake
def _(x: Tensor, y: Tensor, p: int) -> Tensor:
    return x.new_empty((x.shape[1],), dtype=accumulator(x.dtype))


@torch.library.custom_op("fairkern::project", mutates_args=())
def project_op(x: Tensor, directions: Tensor, rows: Tensor | None) -> Tensor:
    """As the function."""
    return project(x, directions, rows=rows)


@project_op.register_fake
def _(x: Tensor, directions: Tensor, rows: Tensor | None) -> Tensor:
    shape = (x.shape[0] if rows is None else rows.shape[0], x.shape[1], directions.shape[1])
    return x.new_empty(shape, dtype=accumulator(x.dtype))


@torch.library.custom_op("fairkern::gather", mutates_args=())
def gather_op(weight: Tensor, dims: Sequence[int], indices: Sequence[Tensor]) -> Tensor:
    """Position i of `indices` belongs to dimension `dims[i]`."""
    return gather(weight, dict(zip(dims, indices, strict=True)))


@gather_op.register_fake
def _(weight: Tensor, dims: Sequence[int], indices: Sequence[Tensor]) -> Tensor:
    shape = list(weight.shape)
    for dim, index in zip(dims, indices, strict=True):
        shape[dim] = index.shape[-1]
    return weight.new_empty(shape)
