"""The sliced Wasserstein distance between classes: projection and distances in one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.project import project
from fairkern.ops.wasserstein import PairReduction, class_wasserstein, group_by_class, native
from fairkern.options import whole

__all__ = ["Placed", "sliced_wasserstein"]

PIECE_CPU = 1 << 20  # bytes of projections made before they are compared: about the second-level cache of a core
PIECE_GPU = 1 << 28


class Placed(NamedTuple):
    """Which rows of `x` [R, C] are which: the set of units (of so many, `total`), sample and position of each, int64
    [R], in any order. All positions that have no row are zero; none has two.

    Example: one unit, of which two samples have a row each, at their first position and at their second.
        >>> placed = Placed(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1]), total=1)
        >>> sliced_wasserstein(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1), torch.tensor([0, 1]), placed=placed)
        tensor([[2.]])
    """

    sets: Tensor
    samples: Tensor
    places: Tensor
    total: int

    def dense(self, x: Tensor, number: int, samples: int, positions: int) -> Tensor:
        """One set's rows of `x` with zeros at all other positions: [samples, C, positions]."""
        own = self.sets == number
        made = x.new_zeros((samples, positions, x.shape[1]))
        made[self.samples[own], self.places[own]] = x[own]
        return made.transpose(1, 2)


def sliced_wasserstein(
    x: Tensor,
    directions: Tensor,
    labels: Tensor,
    reduce: str = "max",
    *,
    backend: str = "auto",
    placed: Placed | None = None,
) -> Tensor:
    """`class_wasserstein(project(x, directions), labels, reduce)`; the projections are never all in memory at once.

    Args:
        x: [N, C, D] samples of C units with D positions; float32, float64, bfloat16 or float16, any strides.
        directions: [D, P], as from `directions(d, p, seed)`.
        labels, reduce, backend: as for `class_wasserstein`. "native" projects and sorts in one kernel; other backends
            project some units at a time.
        placed: where x is [R, C]: rows of sets of C units each, for some positions of each sample. To the bit what each
            set would give with zeros at all other positions; "native" does not make these.

    Returns:
        [C], or [K·(K−1)/2, C] for "pairs"; float32, or float64 for float64 input. Where rows are `placed`, [sets, C],
        or [K·(K−1)/2, sets, C].

    Raises:
        InputError, BackendError: as `class_wasserstein`.

    Cost: that of `project` and `class_wasserstein`; memory for one unit's projections per thread (native), or for
    pieces of a megabyte (of 256 MB on a GPU). Of `placed` rows R·C·P in place of N·C·D·P, and a copy of them.

    Example:
        >>> x = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[3.0, 1.0]], [[5.0, 1.0]]])
        >>> sliced_wasserstein(x, torch.eye(2), torch.tensor([0, 0, 1, 1]))
        tensor([2.])
    """
    x, directions = _check.floating("x", x), _check.floating("directions", directions)
    if placed is not None:
        return _of_rows(x, directions, labels, reduce, placed, backend)
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


def _of_rows(x: Tensor, directions: Tensor, labels: Tensor, reduce: str, placed: Placed, backend: str) -> Tensor:
    if x.ndim != 2 or x.shape[1] == 0 or directions.ndim != 2 or 0 in directions.shape:
        raise InputError(
            f"x has shape {tuple(x.shape)} and directions {tuple(directions.shape)}; expected [R, C] and [D, P], R the "
            "rows that are placed"
        )
    labels = _check.tensor("labels", labels)
    count, samples, positions = whole("placed.total", placed.total, 1), len(labels), len(directions)
    lengths = {"placed.sets": count, "placed.samples": samples, "placed.places": positions}
    found = [_check.index(name, of, n, x.device) for (name, n), of in zip(lengths.items(), placed[:3], strict=True)]
    if any(len(of) != len(x) for of in found):
        raise InputError(f"placed has {[len(of) for of in found]} numbers; expected one for each of {len(x)} rows")
    _check.same_device(x=x, directions=directions)
    bags = found[0] * samples + found[1]
    keys, order = (bags * positions + found[2]).sort()
    if bool((keys.diff() == 0).any()):
        raise InputError("placed names one position of a sample twice; expected one row for each at most")
    reduction = _check.option("reduce", reduce, PairReduction).value
    if len(x) and resolve("class_wasserstein", backend, x.device) is Backend.NATIVE:
        begins = torch.cat((keys.new_zeros(1), bags.bincount(minlength=count * samples).cumsum(0)))
        made = native.class_wasserstein(
            x.index_select(0, order),
            *group_by_class(labels, samples, x.device),
            reduction,
            directions=directions.to(_check.accumulator(x.dtype)),
            placed=(begins, keys % positions),
        )
        return made.unflatten(-1, (count, -1))
    own = Placed(found[0], found[1], found[2], count)
    sets = (own.dense(x, number, samples, positions) for number in range(count))
    parts = [sliced_wasserstein(one, directions, labels, reduction, backend=backend) for one in sets]
    return torch.stack(parts, dim=-2)


def _pieces(x: Tensor, directions: Tensor, wide: torch.dtype) -> Iterator[Tensor]:
    """Projections of some units at a time, each piece valid until the next."""
    per_unit = len(x) * directions.shape[1] * wide.itemsize
    step = max(1, (PIECE_CPU if x.device.type == "cpu" else PIECE_GPU) // per_unit)
    scratch = torch.empty(len(x) * min(step, x.shape[1]) * directions.shape[1], dtype=wide, device=x.device)
    for part in x.split(step, dim=1):
        shape = (*part.shape[:2], directions.shape[1])
        yield project(part, directions, out=scratch[: shape[0] * shape[1] * shape[2]].view(shape))
