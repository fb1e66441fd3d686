"""Where the samples of a batch lie in tensors that are kept, so that some of them can be taken out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.walk.boundaries import Boundaries
from fairkern.walk.chain import INSTEAD

_NEAR = 0.05  # relative difference between a sample of a batch and the same one alone


@dataclass(frozen=True)
class _Along:
    """`fold` rows of each sample along a dimension, one behind the other or samples in turn."""

    dim: int
    fold: int
    in_turn: bool = False

    def of(self, x: Tensor, chosen: Tensor, samples: int) -> Tensor:
        folds = torch.arange(self.fold, device=chosen.device)
        rows = folds[:, None] * samples + chosen if self.in_turn else chosen[:, None] * self.fold + folds
        return x.index_select(self.dim, rows.reshape(-1).to(x.device))


@dataclass(frozen=True)
class Rows:
    """Of each tensor where its samples lie; None: it belongs to all; a text: why that cannot be told."""

    each: tuple[_Along | str | None, ...]

    def samples_in(self, x: Tensor) -> int:
        """How many samples the first of these tensors holds, of which some are given as `x`."""
        along = self.each[0]
        if isinstance(along, str):
            raise InputError(along)
        return 0 if along is None else x.shape[along.dim] // along.fold

    def taken(self, chosen: Tensor, samples: int) -> Callable[[int, Tensor], Tensor]:
        """The rows of the `chosen` of so many samples, by a tensor's number."""

        def take(number: int, x: Tensor) -> Tensor:
            along = self.each[number]
            if isinstance(along, str):
                raise InputError(along)
            return x if along is None else along.of(x, chosen, samples)

        return take


def rows_of(held: Any, alone: Any, samples: int) -> Rows:
    """By what is kept for a batch of so many samples, of whatever nesting, and for the last of them alone.

    A tensor that is not there for one alone (a mask that hides nothing) has a row for each where its first dimension
    counts them, but a vector.
    """
    tensors = Boundaries.tensors(held)
    others: dict[int, Tensor] = {}
    _match(held, alone, others)
    return Rows(tuple(_along(x, others.get(id(x)), samples) for x in tensors))


def _match(value: Any, other: Any, found: dict[int, Tensor]) -> None:
    """Tensors at the same place, by the id of the first."""
    if isinstance(value, Tensor):
        if isinstance(other, Tensor):
            found.setdefault(id(value), other)
    elif isinstance(value, Mapping) and isinstance(other, Mapping):
        for key in value.keys() & other.keys():
            _match(value[key], other[key], found)
    elif isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)):
        for a, b in zip(value, other, strict=False):
            _match(a, b, found)


def _along(x: Tensor, one: Tensor | None, samples: int) -> _Along | str | None:
    if one is None:
        return _Along(0, 1) if x.ndim > 1 and len(x) == samples else None
    if x.shape == one.shape:
        return None
    differ = [d for d, (n, m) in enumerate(zip(x.shape, one.shape, strict=False)) if n != m]
    said = f"{tuple(x.shape)} for {samples} samples and {tuple(one.shape)} for one"
    if x.ndim == one.ndim and len(differ) == 1 and x.shape[differ[0]] == samples * one.shape[differ[0]]:
        (dim,) = differ
        ways = [_Along(dim, one.shape[dim])] + [_Along(dim, one.shape[dim], True)] * (one.shape[dim] > 1)
        last = torch.tensor([samples - 1], dtype=torch.int64, device="cpu")
        errors = [_error(way.of(x, last, samples), one) for way in ways]
        best = min(range(len(ways)), key=errors.__getitem__)
        if errors[best] < _NEAR:
            return ways[best]
    return (
        f"what passes between blocks has shape {said}, or other values: where samples lie there cannot be seen; give "
        f"batches of one, or {INSTEAD}"
    )


def _error(x: Tensor, one: Tensor) -> float:
    if not x.is_floating_point():
        return float((x != one.to(x.device)).double().mean()) if x.numel() else 0.0
    a, b = x.double(), one.to(x.device).double()
    finite = torch.isfinite(a) & torch.isfinite(b)
    a, b = a[finite], b[finite]
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30))
