"""Checks that several operators share. Each message says what was given and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fairkern.errors import InputError
from fairkern.options import iterable, whole
from fairkern.surroundings import refuse

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_PLAIN = (Tensor, torch.nn.Parameter)  # what most are: there is no more to ask

Option = TypeVar("Option", bound=Enum)


def tensor(name: str, value: object) -> Tensor:
    refuse("an operator")
    return dense(name, value)


def dense(name: str, value: object) -> Tensor:
    """`tensor`, of one of many: whether there are values at all is asked once for all of them."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
    if value.layout != torch.strided:
        raise InputError(f"{name} has layout {value.layout}; expected a dense tensor: call to_dense() first")
    without = _without_memory(value)
    if without is not None:
        raise InputError(f"{name} {without}")
    if value.requires_grad or value.is_conj() or value.is_neg():
        return value.detach().resolve_conj().resolve_neg()
    return value


def _without_memory(value: Tensor) -> str | None:
    """Why a tensor that says it is dense has no memory in which its values lie one beside the other; None if it has."""
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "belongs to a transform of torch.func (vmap, grad, jvp); call this outside of it, on plain tensors"
    if type(value) in _PLAIN and not value.is_nested:
        return None
    if isinstance(value, FakeTensor):
        return "is a fake tensor, which has no values; torch.ops.fairkern has operators with fakes"
    if value.is_nested:
        return "is a nested tensor; expected a dense one: call to_padded_tensor() first"
    if is_traceable_wrapper_subclass(value):
        return f"is packed or distributed ({type(value).__name__}); expected a plain tensor"
    return None


def floating(name: str, value: object) -> Tensor:
    checked = tensor(name, value)
    if checked.dtype not in FLOATS:
        raise InputError(f"{name} has dtype {checked.dtype}; expected float32, float64, bfloat16 or float16")
    return checked


def option(name: str, value: object, enum: type[Option]) -> Option:
    try:
        return enum(value)
    except ValueError:
        expected = ", ".join(repr(member.value) for member in enum)
        raise InputError(f"{name} is {value!r}; expected one of {expected}") from None


def jobs(value: Any, fields: str) -> list[Sequence[Any]]:
    """A list of things that go together: so many of each, as `fields` names them."""
    iterable("jobs", value, f"a list of ({fields})")
    given = list(value)
    for number, job in enumerate(given):
        if not isinstance(job, (tuple, list)) or len(job) != fields.count(",") + 1:
            raise InputError(f"job {number} is a {type(job).__name__}; expected ({fields})")
    return given


def device(value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"device is {value!r}; expected one of torch, for example 'cpu' or 'cuda:0'") from None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept and returned in: float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dimension(name: str, dim: object, rank: int) -> int:
    dim = whole(name, dim)
    if not -rank <= dim < rank:
        raise InputError(f"{name} is {dim}; expected {-rank} to {rank - 1} for a tensor of {rank} dimensions")
    return dim % rank


def same_device(**tensors: Tensor) -> None:
    places = {name: value.device for name, value in tensors.items()}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise InputError(f"tensors on different devices: {listed}; move them to one")


def index(name: str, value: object, length: int, device: torch.device) -> Tensor:
    """Positions in a dimension of `length`, int64 [kept], on `device`."""
    checked = tensor(name, value)
    if checked.dtype != torch.int64 or checked.ndim != 1:
        raise InputError(f"{name} is {checked.dtype} of shape {tuple(checked.shape)}; expected int64 of one dimension")
    if checked.numel():
        low, high = (int(bound) for bound in torch.aminmax(checked))
        if low < 0 or high >= length:
            raise InputError(f"{name} goes from {low} to {high}; expected positions from 0 to {length - 1}")
    return checked.to(device)
