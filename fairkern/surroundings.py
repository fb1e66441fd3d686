"""What a caller may have entered around a stage: what would give it other values is left or refused, all else stays."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn.parameter import is_lazy
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fairkern.errors import InputError
from fairkern.interrupts import interrupts_wait

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def stage(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """A function that users call, wherever they do: it is never compiled, and leaves some of what may be entered there.

    In inference mode it runs as under `no_grad`, which is what its caller's own code (a loader, a loss) then sees.
    `FakeTensorMode` is left (models of fake tensors are traced in their own). Where the default device is meta, it is
    the CPU: a model with values that makes an index in its forward would pick rows with an index that has none, and
    torch would hand it whatever lies in memory. Whether gradients are on, other modes, the default device and dtype
    stay: they belong to the model and to what its caller hands over.

    Raises InputError within a `torch.func` transform, `make_fx`, `torch.export` and `torch.jit.trace`.
    """

    @uncompiled
    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with interrupts_wait(), ExitStack() as left:
            left.enter_context(unset_fake_temporarily())
            refuse(function.__name__)
            if torch.is_inference_mode_enabled():
                left.enter_context(torch.inference_mode(False))
                left.enter_context(torch.no_grad())  # the first alone would turn gradients on
            default = _device_context()
            if default is not None and default.device.type == "meta":
                left.enter_context(torch.device("cpu"))
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

    named: Any = run
    named.__code__ = named.__code__.replace(co_name=function.__name__)  # an `__exit__` is known by it (`interrupts`)
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
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else ()
    return next((type(mode).__name__ for mode in modes if isinstance(mode, _WITHOUT_VALUES)), None)


_WITHOUT_VALUES = (FakeTensorMode, FunctionalTensorMode, ProxyTorchDispatchMode)


def ordinary(tensor: Tensor) -> Tensor:
    """One that was made in inference mode as one that gradients may be asked of and that may be written to: a copy."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_ordinary(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """InputError for a model's tensors, by name, that were made in inference mode."""
    for name, tensor in tensors:
        if not is_lazy(tensor) and tensor.is_inference():
            raise InputError(
                f"{name} was made in torch.inference_mode(), and outside of that torch neither writes to it nor takes "
                "gradients past it; for a model of ordinary tensors: "
                "with torch.inference_mode(False): model = copy.deepcopy(model)"
            )


def default_device() -> Callable[[], AbstractContextManager[object]]:
    """What another thread enters to make tensors where the thread that asks does: it begins without a default."""
    default = _device_context()
    return nullcontext if default is None else partial(torch.device, default.device)


def device_of_new_tensors() -> torch.device:
    """As `torch.get_default_device`, which in torch 2.9 fails from `set_default_device(None)` on."""
    default = _device_context()
    return torch.device("cpu") if default is None else default.device


def _device_context() -> DeviceContext | None:
    """The default device, if there is one: the innermost, which lies on top."""
    modes = map(torch._C._get_function_stack_at, reversed(range(torch._C._len_torch_function_stack())))
    return next((mode for mode in modes if isinstance(mode, DeviceContext)), None)
