"""Wasserstein distances between the samples of a unit: the U-score."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check, _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.wasserstein import native, reference
from fairkern.options import whole

__all__ = ["class_wasserstein", "wasserstein_1d"]


class PairReduction(str, Enum):
    """What is made of the distances of all class pairs."""

    MAX = "max"
    MEAN = "mean"
    PAIRS = "pairs"


def class_wasserstein(x: Tensor, labels: Tensor, reduce: str = "max", *, backend: str = "auto") -> Tensor:
    """Per unit, the Wasserstein-1 distances between the classes' samples, reduced over class pairs.

    With `x` [N, C, P] the distance of a pair is the mean over the P columns: the sliced distance, if they are
    projections. Classes of different sizes are compared exactly: ∫|F⁻¹(q) − G⁻¹(q)|dq, as
    `scipy.stats.wasserstein_distance`, not an interpolation.

    Args:
        x: [N, C] or [N, C, P], N samples of C units; float32, float64, bfloat16 or float16, any strides.
        labels: [N] integers, at least two different ones, any values.
        reduce: "max" over class pairs (the U-score), "mean", or "pairs": all of them, in lexicographic order
            of the sorted class labels.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [C], or [K·(K−1)/2, C] for "pairs", in the unit of `x`; float32, or float64 for float64 input.
        A NaN makes every pair of its unit and class NaN, and with "max" and "mean" the unit's result.

    Raises:
        InputError: shapes, dtypes or labels that cannot be used. BackendError: the backend cannot run here.

    Cost: sorting, N·C·P·log²(N/K) (by radix above `config.NETWORK_LIMIT` samples per class: N·C·P), and comparing,
    K·N·C·P; memory for one unit's (or 16 units') samples per thread, 64·N bytes for each 16 of its projections. The
    same bits on any number of threads.

    Source: arXiv 2508.02291, Utilization Score.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [5.0, 1.0]])
        >>> class_wasserstein(x, torch.tensor([0, 0, 1, 1]))
        tensor([4., 0.])
    """
    x = _check.floating("x", x)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}; expected [N, C] or [N, C, P] without empty dimensions")
    reduction = _check.option("reduce", reduce, PairReduction).value
    chosen = resolve("class_wasserstein", backend, x.device, {Backend.TRITON: _triton.unsupported(x.dtype)})
    order, offsets = group_by_class(labels, len(x), x.device)
    columns = x if x.ndim == 3 else x.unsqueeze(2)
    if chosen is Backend.NATIVE:
        return native.class_wasserstein(columns, order, offsets, reduction)
    if chosen is Backend.TRITON:
        from fairkern.ops.wasserstein import triton_kernel

        return triton_kernel.class_wasserstein(columns, order, offsets, reduction)
    wide = columns.to(_check.accumulator(x.dtype))
    return reference.class_wasserstein(wide, order, offsets, reduction)


def wasserstein_1d(x: Tensor, y: Tensor, p: int = 1, *, backend: str = "auto") -> Tensor:
    """Per column, the p-Wasserstein distance between two sets of samples, exact for different counts.

    Args:
        x: [N, C] float samples, N ≥ 1; float32, float64, bfloat16 or float16.
        y: [M, C] samples of the same dtype, M ≥ 1.
        p: 1 or 2. For 2, the root of ∫(F⁻¹ − G⁻¹)².
        backend: "auto", "native" or "reference".

    Returns:
        [C], in the unit of `x`; float32, or float64 for float64 input. A NaN in a column makes its result NaN.

    Raises:
        InputError: shapes, dtypes or p that cannot be used. BackendError: the backend cannot run here.

    Cost: two sorts along the samples and one pass over both. Native: memory for a cache line of columns (16, or 8 of
    float64) per thread, in and out of any strides; the same bits on any number of threads.

    Example:
        >>> wasserstein_1d(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [5.0], [8.0]]))
        tensor([5.5000])
    """
    x, y = _check.floating("x", x), _check.floating("y", y)
    _check.same_device(x=x, y=y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise InputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected [N, C] and [M, C], neither empty"
        )
    if x.dtype != y.dtype:
        raise InputError(f"x is {x.dtype} and y is {y.dtype}; expected one dtype")
    p = whole("p", p, 1, 2)
    if resolve("wasserstein_1d", backend, x.device) is Backend.NATIVE:
        return native.wasserstein_1d(x, y, p)
    wide = _check.accumulator(x.dtype)
    return reference.wasserstein_1d(x.to(wide), y.to(wide), p)


def group_by_class(labels: Tensor, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sample numbers class after class (sorted labels, sample order within), and where each class begins."""
    labels = _check.tensor("labels", labels)
    if labels.dtype not in _check.INTEGERS:
        raise InputError(f"labels have dtype {labels.dtype}; expected integers, one class number per sample")
    if labels.shape != (samples,):
        raise InputError(f"labels have shape {tuple(labels.shape)}; expected [{samples}], one per sample of x")
    ordered, order = labels.to(device=device, dtype=torch.int64).sort(stable=True)
    counts = torch.unique_consecutive(ordered, return_counts=True)[1]
    if len(counts) < 2:
        raise InputError(f"labels name {len(counts)} class; at least 2 are needed to compare")
    return order, torch.cat((counts.new_zeros(1), counts.cumsum(0)))
