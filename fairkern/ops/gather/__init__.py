"""Take positions from several dimensions of a tensor at once: what compaction is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.gather import native, reference
from fairkern.ops.gather.dims import unsupported

__all__ = ["gather", "gather_many"]


def gather(weight: Tensor, indices: Mapping[int, Tensor], *, backend: str = "auto") -> Tensor:
    """`weight[..., index, ...]` in every given dimension, in one read.

    Args:
        weight: any shape, strides and dtype of 1, 2, 4, 8 or 16 bytes (bool, float8 and complex included).
        indices: dimension → positions to take, int64 [kept], each 0 ≤ position < length; repeated and unordered
            positions are allowed. Dimensions that are not named stay whole; without any, the result is a copy.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        A new contiguous tensor of the dtype and on the device of `weight`.

    Raises:
        InputError: names the dimension whose index cannot be used. BackendError: the backend cannot run here.

    Cost: one read of what is taken and one write of the result (reference: one of each per dimension).

    Example:
        >>> import torch
        >>> gather(torch.arange(12).view(3, 4), {0: torch.tensor([0, 2]), 1: torch.tensor([3, 1])})
        tensor([[ 3,  1],
                [11,  9]])
    """
    return gather_many([(weight, indices)], backend=backend)[0]


def gather_many(jobs: Iterable[tuple[Tensor, Mapping[int, Tensor]]], *, backend: str = "auto") -> list[Tensor]:
    """`gather` for many tensors in one call; arguments, results and errors as there.

    Every job is checked before the first result is made.

    Example:
        >>> import torch
        >>> weight, bias, keep = torch.eye(3), torch.arange(3.0), torch.tensor([2])
        >>> gather_many([(weight, {0: keep}), (bias, {0: keep})])
        [tensor([[0., 0., 1.]]), tensor([2.])]
    """
    checked = [_checked(number, weight, indices) for number, (weight, indices) in enumerate(jobs)]
    chosen = [
        resolve(
            "gather",
            backend,
            weight.device,
            {Backend.NATIVE: _too_many(weight), Backend.TRITON: unsupported(weight, indices)},
        )
        for weight, indices in checked
    ]
    results = [
        reference.gather(weight, indices)
        if which is Backend.REFERENCE
        else _by_triton(weight, indices)
        if which is Backend.TRITON
        else None
        for which, (weight, indices) in zip(chosen, checked, strict=True)
    ]
    compiled = [job for which, job in zip(chosen, checked, strict=True) if which is Backend.NATIVE]
    made = iter(native.gather_many(compiled) if compiled else ())
    return [next(made) if result is None else result for result in results]


def _by_triton(weight: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    from fairkern.ops.gather import triton_kernel

    return triton_kernel.gather(weight, indices)


def _checked(number: int, weight: object, indices: object) -> tuple[Tensor, dict[int, Tensor]]:
    source = _check.tensor(f"weight {number}", weight).resolve_conj().resolve_neg()
    if not isinstance(indices, Mapping):
        raise InputError(f"indices {number} is a {type(indices).__name__}; expected a mapping from dimension to index")
    valid: dict[int, Tensor] = {}
    for dim, index in indices.items():
        axis = _check.dimension(f"a dimension of indices {number}", dim, source.ndim)
        if axis in valid:
            raise InputError(f"indices {number} names dimension {axis} twice ({dim} is the same)")
        valid[axis] = _check.index(f"indices {number}[{dim}]", index, source.shape[axis], source.device)
    return source, valid


def _too_many(weight: Tensor) -> str | None:
    if weight.ndim > native.MAX_DIMS:
        return f"the native backend takes at most {native.MAX_DIMS} dimensions, and this tensor has {weight.ndim}"
    return None
