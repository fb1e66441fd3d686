"""What a caller may have entered around a stage: what would give it other values is left or refused, all else stays."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fairkern.errors import InputError

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def stage(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """A function that users call, wherever they do: outside of inference mode, never compiled, never traced.

    In inference mode it runs as under `no_grad`, which is what its caller's own code (a loader, a loss) then sees.
    Raises InputError where tensors have no values (`FakeTensorMode`, a `torch.func` transform, tracing by `make_fx`,
    `torch.export` or `torch.jit.trace`).
    """

    @uncompiled
    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        refuse(function.__name__)
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():  # the first alone would turn gradients on
            return function(*args, **kwargs)

    return run


def uncompiled(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """The same function, which `torch.compile` runs as it is, and all that it calls."""
    made: list[Callable[_Given, _Made]] = []

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to ask for it takes a second
            return function(*args, **kwargs)
        if not made:
            made.append(torch.compiler.disable(function))
        return made[0](*args, **kwargs)

    return run


def uncast(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """The same function, which computes in the types that it is given where autocast has been entered."""

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with torch._C._DisableAutocast():
            return function(*args, **kwargs)

    return run


def refuse(name: str) -> None:
    """InputError where tensors that are made here would have no values of their own."""
    around = _around()
    if around is not None:
        raise InputError(f"{name} looks at values of tensors, which have none within {around}: call it outside of that")


def _around() -> str | None:
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func (vmap, grad, jvp, functionalize)"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, _WITHOUT_VALUES):
            return type(mode).__name__
    return None


_WITHOUT_VALUES = (FakeTensorMode, FunctionalTensorMode, ProxyTorchDispatchMode)


def ordinary(tensor: Tensor) -> Tensor:
    """One that was made in inference mode as one that gradients may be asked of and that may be written to: a copy."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_ordinary(model: nn.Module) -> None:
    """InputError for a model that was made in inference mode: torch neither writes to its tensors outside of that, nor
    lets gradients past them."""
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            if tensor.is_inference():
                raise InputError(
                    f"{name} was made in torch.inference_mode(), and torch neither writes to such tensors nor takes "
                    "gradients past them; for a model of ordinary ones: "
                    "with torch.inference_mode(False): model = copy.deepcopy(model)"
                )


def default_device() -> Callable[[], AbstractContextManager[object]]:
    """What another thread enters to make tensors where the thread that asks does: it begins without a default."""
    for depth in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(depth)
        if isinstance(mode, DeviceContext):
            return lambda: torch.device(mode.device)
    return nullcontext
