"""Sums over the bytes of tensors: whether a model or a batch is the one that it was, or that another process has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.model.nested import tensors_in
from fairkern.model.sharded import is_sharded, spread_of
from fairkern.model.tensors import named_tensors

_SOME = 4096  # values of a tensor


def sum_of_batch(batch: Any) -> str:
    """Of the tensors in a batch, wherever they lie."""
    return _sum(("", tensor) for tensor in tensors_in(batch))


def sum_of_model(model: nn.Module) -> str:
    """Of parameters and buffers, frozen ones too, with their names, wherever they lie; a second per gigabyte. Of those
    in shards, of which every process has other values, of how they lie."""
    return _sum(sorted(named_tensors(model).items()))


def sum_of_some(batch: Any) -> str:
    """Of shapes and some values of the tensors in a batch, evenly spread: what tells two batches of data apart."""
    return _sum(("", some) for tensor in tensors_in(batch) for some in _some(tensor))


def _some(tensor: Tensor) -> Iterable[Tensor]:
    yield torch.tensor(tensor.shape, dtype=torch.int64, device="cpu")
    if tensor.layout is torch.strided and tensor.numel() > _SOME:
        places = torch.arange(_SOME, device=tensor.device) * tensor.numel() // _SOME
        yield tensor.detach().reshape(-1)[places] if tensor.is_contiguous() else tensor.detach().flatten()[places]
    else:
        yield tensor


def _sum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    state = hashlib.sha256()
    for name, tensor in tensors:
        state.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(spread_of(tensor).encode() if is_sharded(tensor) else _bytes(tensor))
    return state.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    dense = (tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()).cpu()
    dense = dense.resolve_conj().resolve_neg().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data
