"""Take positions from several dimensions of a tensor at once: what compaction is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.gather import cuda, native, reference
from fairkern.ops.gather.dims import unsupported
from fairkern.surroundings import refuse

__all__ = ["gather", "gather_many"]

Job = tuple[Tensor, Mapping[int, Tensor]]
_Sound = dict[tuple[object, ...], tuple[object, Tensor]]  # indices as given, which keeps their ids theirs, and checked


def gather(weight: Tensor, indices: Mapping[int, Tensor], *, backend: str = "auto") -> Tensor:
    """`weight[..., index, ...]` in every given dimension, in one read.

    Args:
        weight: any shape, strides and dtype of 1, 2, 4, 8 or 16 bytes (bool, float8 and complex included).
        indices: dimension → positions to take, int64 [kept], each 0 ≤ position < length; repeated and unordered
            positions are allowed. Dimensions that are not named stay whole; without any, the result is a copy.
            An index [E, kept] at a dimension of 1 or more gives each of the E positions of dimension 0 of `weight`
            (each expert) a set of its own.
        backend: "auto", "native", "cuda", "triton" or "reference".

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
    given = _check.jobs(jobs, "weight, indices")
    refuse("an operator")
    sound: _Sound = {}
    checked = [_checked(number, weight, indices, sound) for number, (weight, indices) in enumerate(given)]
    able: dict[torch.device, Backend] = {}
    batches: dict[tuple[Backend, torch.device], list[int]] = defaultdict(list)
    for number, (weight, indices) in enumerate(checked):
        batches[_chosen(backend, weight, indices, able), weight.device].append(number)
    results: dict[int, Tensor] = {}
    for (which, _), numbers in batches.items():
        made = _RUN[which]([checked[number] for number in numbers])
        results.update(zip(numbers, made, strict=True))
    return [results[number] for number in range(len(checked))]


def _by_triton(weight: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    from fairkern.ops.gather import triton_kernel

    return triton_kernel.gather(weight, indices)


def _checked(number: int, weight: object, indices: object, sound: _Sound) -> tuple[Tensor, dict[int, Tensor]]:
    source = _check.dense(f"weight {number}", weight)
    if type(indices) is not dict and not isinstance(indices, Mapping):
        raise InputError(f"indices {number} is a {type(indices).__name__}; expected a mapping from dimension to index")
    valid: dict[int, Tensor] = {}
    shape, device, rows = source.shape, source.device, False
    for dim, index in indices.items():
        known = type(dim) is int and 0 <= dim < len(shape)
        axis = dim if known else _check.dimension(f"a dimension of indices {number}", dim, len(shape))
        if axis in valid:
            raise InputError(f"indices {number} names dimension {axis} twice ({dim} is the same)")
        where = id(index), shape[axis], device
        found = sound.get(where)
        if found is None:
            found = index, _checked_index(f"indices {number}[{dim}]", index, source, axis)
            if found[1].ndim == 1:  # one of two dimensions is held against more of its tensor
                sound[where] = found
            else:
                rows = True
        valid[axis] = found[1]
    first = valid.get(0)
    if rows and first is not None:  # rows of an index follow the positions of dimension 0 that stay
        valid = {d: index.index_select(0, first) if index.ndim == 2 else index for d, index in valid.items()}
    return source, valid


def _checked_index(name: str, given: object, source: Tensor, axis: int) -> Tensor:
    index = _check.tensor(name, given)
    if index.ndim != 2:
        return _check.index(name, index, source.shape[axis], source.device)
    if axis == 0 or len(index) != len(source):
        raise InputError(
            f"{name} has shape {tuple(index.shape)} for a tensor {tuple(source.shape)}; an index of two dimensions "
            "has a row per position of dimension 0 and belongs to another dimension"
        )
    flat = _check.index(name, index.reshape(-1), source.shape[axis], source.device)
    return flat.view(index.shape)


def _chosen(backend: str, weight: Tensor, indices: Mapping[int, Tensor], able: dict[torch.device, Backend]) -> Backend:
    """The backend of a job; `able`: what runs on a device, whatever the job."""
    first, few = able.get(weight.device), weight.ndim <= native.MAX_DIMS
    if first is None and few and not (isinstance(backend, str) and backend == Backend.TRITON.value):
        first = able[weight.device] = resolve("gather", backend, weight.device)
    if first is None or first is Backend.TRITON or not few:
        return resolve("gather", backend, weight.device, _why_not(weight, indices))
    return first


def _why_not(weight: Tensor, indices: Mapping[int, Tensor]) -> dict[Backend, str | None]:
    """Reasons that lie in the job."""
    many = weight.ndim > native.MAX_DIMS  # the CUDA extension takes as many
    reason = f"takes at most {native.MAX_DIMS} dimensions, and this tensor has {weight.ndim}"
    own = any(index.ndim == 2 for index in indices.values())
    return {
        Backend.NATIVE: f"the native backend {reason}" if many else None,
        Backend.CUDA: f"the CUDA backend {reason}" if many else None,
        Backend.TRITON: "the Triton gather takes no index per position" if own else unsupported(weight, indices),
    }


_RUN: Mapping[Backend, Callable[[list[Job]], list[Tensor]]] = {
    Backend.NATIVE: native.gather_many,
    Backend.CUDA: cuda.gather_many,
    Backend.TRITON: lambda jobs: [_by_triton(weight, indices) for weight, indices in jobs],
    Backend.REFERENCE: lambda jobs: [reference.gather(weight, indices) for weight, indices in jobs],
}
