"""Calls the CUDA gather: a table of tasks for any number of tensors of one device, in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from fairkern.errors import BackendError
from fairkern.ops import _cuda

MAX_DIMS = 12  # of the extension, after merging
Job = tuple[Tensor, Mapping[int, Tensor]]


def gather_many(jobs: Sequence[Job]) -> list[Tensor]:
    """CUDA tensors of one device, validated int64 indices there → contiguous results."""
    module, device = _cuda.extension(), jobs[0][0].device
    results, tasks, blocks, keep_alive = plan(jobs, module)
    if not blocks:
        return results
    stream = torch.cuda.current_stream(device)
    there = tasks.to(device)
    try:
        module.gather(
            tasks=there.data_ptr(), jobs=len(jobs), blocks=blocks, device=device.index or 0, stream=stream.cuda_stream
        )
    except RuntimeError as error:
        raise BackendError(f"gather: backend 'cuda' failed: {error}") from error
    del keep_alive  # the stream that frees them is the one that reads them
    return results


def plan(jobs: Sequence[Job], module: ModuleType) -> tuple[list[Tensor], Tensor, int, list[Tensor]]:
    """Empty results, the tasks of the launch as bytes, its number of blocks, and the indices that it reads."""
    keep_alive: list[Tensor] = []
    results: list[Tensor] = []
    table: list[list[int]] = []
    for weight, indices in jobs:
        shape = [indices[d].shape[-1] if d in indices else length for d, length in enumerate(weight.shape)]
        result = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        held = {dim: index.contiguous() for dim, index in indices.items()}
        keep_alive.extend(held.values())
        results.append(result)
        table.append(descriptor(weight, result, held))
    rows = torch.tensor(table, dtype=torch.int64, device="cpu")
    tasks = torch.zeros(len(jobs) * module.TASK_BYTES, dtype=torch.uint8, device="cpu")
    blocks = module.gather_plan(table=rows.data_ptr(), jobs=len(jobs), tasks=tasks.data_ptr())
    return results, tasks, blocks, keep_alive


def descriptor(weight: Tensor, result: Tensor, indices: Mapping[int, Tensor]) -> list[int]:
    """One row of the table: addresses, element size, dims, then shape, stride, index and index step per dim.

    Whole dimensions that are one in memory are merged, except into dimension 0 where an index has rows for it.
    """
    size = weight.element_size()
    own = any(index.ndim == 2 for index in indices.values())
    dims: list[tuple[int, int, int, int]] = []
    for d, length in enumerate(result.shape):
        stride, index = weight.stride(d) * size, indices.get(d)
        last = dims[-1] if dims else None
        alone = own and d <= 1
        if index is not None:
            step = index.stride(0) if index.ndim == 2 and result.shape[0] > 1 else 0
            dims.append((length, stride, index.data_ptr(), step))
        elif last and not alone and last[2] == 0 and last[1] == stride * length:
            dims[-1] = (last[0] * length, stride, 0, 0)
        elif length != 1:
            dims.append((length, stride, 0, 0))
    padding = [0] * (MAX_DIMS - len(dims))
    columns = [[dim[i] for dim in dims] + padding for i in range(4)]
    return [weight.data_ptr(), result.data_ptr(), size, len(dims), *columns[0], *columns[1], *columns[2], *columns[3]]
