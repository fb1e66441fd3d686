"""What can be traced: models and inputs that cannot are refused before they run, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fairkern.errors import InputError
from fairkern.model.nested import tensors_in
from fairkern.model.tensors import named_tensors
from fairkern.model.wrappers import check_unwrapped

# hooks that compute a parameter before every forward pass, so that the module holds the result of other tensors
_HOOKS: tuple[tuple[type, str], ...] = (
    (WeightNorm, "torch.nn.utils.remove_weight_norm({0})"),
    (SpectralNorm, "torch.nn.utils.remove_spectral_norm({0})"),
    (BasePruningMethod, "torch.nn.utils.prune.remove({0}, name)"),
)


def check_model(model: nn.Module) -> None:
    """InputError for a wrapper, a module that computes its parameters in a hook, a tensor of a packed class, or a
    lazy module that has not run; says what to pass instead.
    """
    check_unwrapped(model)
    for path, module in model.named_modules():
        name = _named(path)
        for hook in module._forward_pre_hooks.values():
            for kind, call in _HOOKS:
                if isinstance(hook, kind):
                    raise InputError(
                        f"{name} computes a parameter in a hook ({type(hook).__name__}), so it can be neither followed "
                        f"nor copied: call {call.format(name)} first, which keeps what it computes"
                    )
    for name, tensor in named_tensors(model).items():
        if is_lazy(tensor):
            raise InputError(f"{name} has no shape yet: run the lazy module once before tracing the model")
        if is_traceable_wrapper_subclass(tensor):
            raise InputError(
                f"{name} is packed or distributed ({type(tensor).__name__}), and only dense tensors are cut: "
                "prune the model first, then quantise or distribute it"
            )


def _named(path: str) -> str:
    return f"model.{path}" if path else "model"


def notes(model: nn.Module) -> Iterator[str]:
    """What stays because of how the model is built, and what would free it: parametrized and quantised tensors."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, steps in module.parametrizations.items():
                kinds = ", ".join(type(step).__name__ for step in steps)
                yield (
                    f"{f'{path}.{name}'.lstrip('.')} is computed by {kinds}, and axes that this mixes stay; "
                    f"torch.nn.utils.parametrize.remove_parametrizations({_named(path)}, {name!r}) makes it a plain "
                    "parameter"
                )
        quantised = type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
        if quantised and not path.endswith("_packed_params"):
            yield f"{path} is quantised ({type(module).__name__}) and stays as it is: prune first, then quantise"


def check_inputs(model: nn.Module, runs: Sequence[Any]) -> None:
    """InputError where example inputs hold no tensor, or lie on another device than a model that has values."""
    devices = {t.device for t in [*model.parameters(), *model.buffers()]}
    for inputs in runs:
        found = list(tensors_in(inputs))
        if not found:
            raise InputError(
                f"example inputs hold no tensor (got {type(inputs).__name__}); "
                "give a tensor, a tuple of positional arguments or a dict of keyword arguments"
            )
        if devices == {torch.device("meta")}:
            continue
        for tensor in found:
            if devices and tensor.device not in devices:
                where = ", ".join(sorted(map(str, devices)))
                raise InputError(
                    f"an example input is on {tensor.device}, the model is on {where}; move one to the other"
                )
