"""A native backend that is missing fails these tests unless the build was told to leave it out.

The Triton and CUDA backends run the same tables on a GPU (`-m gpu`), Triton's also on the CPU where its kernels are
interpreted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from fairkern import env, ops
from fairkern.ops import _cuda, _native, _triton

TRITON = pytest.param("triton", marks=pytest.mark.gpu)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
ON_DEVICE = {"triton": _triton.unavailable, "cuda": _cuda.unavailable}


@pytest.fixture(params=["reference", "native", TRITON])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend of an operator that has all."""
    if request.param == "native" and (reason := _native.unavailable()):
        pytest.skip(reason)
    yield from _prepared(request, monkeypatch)


@pytest.fixture(params=["reference", "native", CUDA, TRITON])
def gather_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend of the gather."""
    if request.param == "native" and (reason := _native.unavailable()):
        pytest.skip(reason)
    yield from _prepared(request, monkeypatch)


@pytest.fixture
def extension():
    """The compiled extension."""
    if reason := _native.unavailable():
        pytest.skip(reason)
    return _native.extension()


def _prepared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """On a device: operators of the test's module move tensors there, and fresh memory holds NaN."""
    if request.param not in ON_DEVICE:
        yield request.param
        return
    interpreted = request.param == "triton" and env.triton_interpreted()
    device = torch.device("cpu" if interpreted else "cuda", None if interpreted else 0)
    if not interpreted and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if reason := ON_DEVICE[request.param](device):
        pytest.skip(reason)
    for name, operator in vars(ops).items():
        if isinstance(operator, FunctionType) and getattr(request.module, name, None) is operator:
            monkeypatch.setattr(request.module, name, _moving(operator, device))
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty
    try:
        yield request.param
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _moving(operator: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The operator with tensors moved there and back; a dtype that the kernels leave out skips the test."""

    def call(*arguments: Any, **options: Any) -> Any:
        if options.get("backend") not in ON_DEVICE:
            return operator(*arguments, **options)
        there = _mapped(lambda tensor: _to(tensor, device), (arguments, options))
        tensors = [leaf for leaf in pytree.tree_leaves(there[0]) if isinstance(leaf, torch.Tensor)]
        if operator.__name__ not in ("gather", "gather_many") and any(x.dtype == torch.float64 for x in tensors[:1]):
            pytest.skip("the Triton kernels add in float32")
        result = operator(*there[0], **there[1])
        return _mapped(torch.Tensor.cpu, result)

    return call


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """`function` of every tensor, those in dataclasses included."""

    def leaf(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(value, **{name: leaf(part) for name, part in vars(value).items()})
        return function(value) if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(leaf, tree)


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device with the same strides."""
    if tensor.device == device or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return tensor
    span = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    whole = tensor.as_strided((span if tensor.numel() else 0,), (1,)).to(device)
    return whole.as_strided(tensor.shape, tensor.stride())
