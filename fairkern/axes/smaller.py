"""Smaller inputs on which a model does the same, operator by operator, so that a proof on them costs less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairkern.axes.dims import Track
from fairkern.model.nested import call_model, map_tensors, tensors_in
from fairkern.model.operator_mode import UncompiledMode
from fairkern.model.replacements import in_place
from fairkern.model.untouched import forget

_SIDE = 64  # along each dimension of space, and what was left over by 32: strides and windows find it as it was
_STRIDE = 32


class Step(NamedTuple):
    """One operator that ran: which parameters and buffers it was given, the sizes of what it made, and which of them
    units lie along."""

    name: str
    read: tuple[str, ...]
    made: tuple[tuple[tuple[int, bool], ...], ...]

    @classmethod
    def of(cls, name: str, read: Iterable[str], made: list[tuple[Tensor, Track]]) -> Step:
        return cls(name, tuple(read), tuple(tuple(zip(t.shape, track.held, strict=True)) for t, track in made))

    @property
    def places(self) -> Iterator[int]:
        """Sizes along which no units lie."""
        return (n for sizes in self.made for n, held in sizes if not held)

    def fits(self, name: str, read: Iterable[str], made: list[Tensor]) -> bool:
        """Whether the same operator made the same of the same parameters, but for fewer places where no units lie:
        never one in place of several, which a norm or a mean over them would see."""
        if name != self.name or len(made) != len(self.made) or tuple(read) != self.read:
            return False
        return all(
            len(sizes) == tensor.ndim
            and all(n == m or (not held and 1 < n < m) for n, (m, held) in zip(tensor.shape, sizes, strict=True))
            for tensor, sizes in zip(made, self.made, strict=True)
        )


def smaller(inputs: Any) -> Any | None:
    """The inputs with images and volumes cut to a corner of theirs; None where that leaves more than half of them."""

    def corner(tensor: Tensor) -> Tensor:
        if not _in_space(tensor):
            return tensor
        made = tensor.detach()
        for dim in range(2, tensor.ndim):
            n = tensor.shape[dim]
            made = made.narrow(dim, 0, min(n, _SIDE + n % _STRIDE))
        return made.clone()

    images = sum(t.numel() for t in tensors_in(inputs) if _in_space(t))
    if not images:
        return None
    made = map_tensors(inputs, corner)
    left = sum(t.numel() for t in tensors_in(made) if _in_space(t))
    return made if 2 * left <= images else None


def _in_space(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.ndim in (4, 5)


class Differs(Exception):
    """The model runs another way."""


class _Alike(UncompiledMode):
    """Raises `Differs` at the first operator that is not the expected one."""

    def __init__(self, expected: list[Step], names: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.expected, self.at = expected, 0
        self.names = {id(tensor): name for name, tensor in names.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.at == len(self.expected):
            raise Differs
        given = map(id, tensors_in((args, kwargs)))
        read = [self.names[tensor] for tensor in given if tensor in self.names]
        if not self.expected[self.at].fits(func._schema.name, read, list(tensors_in(made))):
            raise Differs
        self.at += 1
        return made


def runs_alike(model: nn.Module, inputs: Any, expected: list[Step], names: Mapping[str, Tensor]) -> bool:
    """Whether the model, on these inputs, calls the expected operators and no others, in order, with the same of its
    parameters and buffers (by their `names`), on tensors of the same sizes but for fewer places in space.

    Cost: a forward pass on these inputs.
    """
    forget(model)
    alike = _Alike(expected, names)
    try:
        with torch.no_grad(), in_place(model), alike:
            call_model(model, inputs)
    except Exception:  # whatever the model raises on another size than it was made for
        return False
    return alike.at == len(expected)
