"""The sliced Wasserstein distance between classes: projection and distances in one step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.project import project
from fairkern.ops.wasserstein import PairReduction, class_wasserstein, group_by_class, native

__all__ = ["sliced_wasserstein"]

PIECE_CPU = 1 << 20  # bytes of projections made before they are compared: about the second-level cache of a core
PIECE_GPU = 1 << 28


def sliced_wasserstein(
    x: Tensor, directions: Tensor, labels: Tensor, reduce: str = "max", *, backend: str = "auto"
) -> Tensor:
    """`class_wasserstein(project(x, directions), labels, reduce)`; the projections are never all in memory at once.

    Args:
        x: [N, C, D] samples of C units with D positions; float32, float64, bfloat16 or float16, any strides.
        directions: [D, P], as from `directions(d, p, seed)`.
        labels, reduce, backend: as for `class_wasserstein`. "native" projects and sorts in one kernel; other backends
            project some units at a time.

    Returns:
        [C], or [K·(K−1)/2, C] for "pairs"; float32, or float64 for float64 input.

    Raises:
        InputError, BackendError: as `class_wasserstein`.

    Cost: that of `project` and `class_wasserstein`; memory for one unit's projections per thread (native), or for
    pieces of a megabyte (of 256 MB on a GPU).

    Example:
        >>> x = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[3.0, 1.0]], [[5.0, 1.0]]])
        >>> sliced_wasserstein(x, torch.eye(2), torch.tensor([0, 0, 1, 1]))
        tensor([2.])
    """
    x, directions = _check.floating("x", x), _check.floating("directions", directions)
    if x.ndim != 3 or 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}; expected [N, C, D] without empty dimensions")
    if directions.ndim != 2 or directions.shape[0] != x.shape[2] or directions.shape[1] == 0:
        raise InputError(
            f"directions have shape {tuple(directions.shape)}; expected [{x.shape[2]}, P] for x {tuple(x.shape)}"
        )
    _check.same_device(x=x, directions=directions)
    reduction = _check.option("reduce", reduce, PairReduction).value
    wide = _check.accumulator(x.dtype)
    if resolve("class_wasserstein", backend, x.device) is Backend.NATIVE:
        order, offsets = group_by_class(labels, len(x), x.device)
        return native.class_wasserstein(x, order, offsets, reduction, directions=directions.to(wide))
    parts = [class_wasserstein(part, labels, reduction, backend=backend) for part in _pieces(x, directions, wide)]
    return torch.cat(parts, dim=-1)


def _pieces(x: Tensor, directions: Tensor, wide: torch.dtype) -> Iterator[Tensor]:
    """Projections of some units at a time, each piece valid until the next."""
    per_unit = len(x) * directions.shape[1] * wide.itemsize
    step = max(1, (PIECE_CPU if x.device.type == "cpu" else PIECE_GPU) // per_unit)
    scratch = torch.empty(len(x) * min(step, x.shape[1]) * directions.shape[1], dtype=wide, device=x.device)
    for part in x.split(step, dim=1):
        shape = (*part.shape[:2], directions.shape[1])
        yield project(part, directions, out=scratch[: shape[0] * shape[1] * shape[2]].view(shape))
