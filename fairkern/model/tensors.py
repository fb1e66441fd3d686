"""A model's tensors by name, where they lie, and the lists that hold its modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fairkern.model.filled import filled_buffers

LISTS = (nn.ModuleList, nn.ModuleDict)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first name, but for buffers that a forward pass fills."""
    modules = dict(model.named_modules())
    filled = {id(module._buffers[name]) for module, name in filled_buffers(modules.values())}
    found: dict[str, Tensor] = {}
    for kind, left_out in (("_parameters", set[int]()), ("_buffers", filled)):
        for path, module in modules.items():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in left_out:
                    left_out.add(id(tensor))
                    found[f"{path}.{name}" if path else name] = tensor
    return found


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer, as often as modules hold it: where names do not matter, at a fifth of the cost."""
    return (t for m in model.modules() for of in (m._parameters, m._buffers) for t in of.values() if t is not None)


def not_saved(model: nn.Module) -> dict[str, Tensor]:
    """The buffers, by name, that a state dict does not have: tables, masks, positions."""
    kept = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    return {
        name: tensor
        for name, tensor in named_tensors(model).items()
        if name not in kept and not isinstance(tensor, nn.Parameter)
    }


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    held = module._parameters.get(last, module._buffers.get(last))
    assert held is not None
    return held


def runner(model: nn.Module, path: str) -> str:
    """The innermost module at `path` or around it that has a forward of its own: lists and mere holders have none."""
    while path and type(model.get_submodule(path)).forward is nn.Module.forward:
        path = path.rpartition(".")[0]
    return path


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def memory_of(tensor: Tensor) -> int | None:
    """What tensors on the same memory have in common; None where there is none to be told: sparse tensors, and those
    that a function transform wraps."""
    if tensor.layout is not torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    return int(tensor.untyped_storage()._cdata)
