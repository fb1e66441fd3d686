"""An entry of the zoo: a model by name, its example inputs, and how people use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.model.nested import call_model, map_tensors, tensors_in

Batches = tuple[
    list[Any], Callable[[Any, Any], Tensor] | None
]  # and the loss of an output and its targets, if it needs one


def squared(output: Any, _: Any = None) -> Tensor:
    """A loss of any output: the mean square of every tensor in it that a parameter reaches, added up."""
    found = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.square().mean().to(found[0].dtype) for t in found]).sum()


def unlabelled(inputs: Any) -> Batches:
    """Two batches of the example inputs without targets, and `squared`."""
    return [(inputs, None)] * 2, squared


@dataclass(frozen=True)
class Entry:
    """A model of a library by name; `load` builds it, in eval mode, with example inputs.

    `batches`: what its own training loop goes over, from the example inputs. `use`: its own way of being called when it
    is deployed (predict, generate with a cache), where that is another than calling it. `learn`: its own way of being
    called in train mode. `decides_after`: the module behind which it picks among values that may be equal (boxes by
    their scores), where rounding decides; what that module returns is compared then.
    """

    library: str
    name: str
    load: Callable[[], tuple[nn.Module, Any]]
    batches: Callable[[Any], Batches] = unlabelled
    use: Callable[[nn.Module, Any], Any] | None = None
    learn: Callable[[nn.Module, Any], Any] = call_model
    decides_after: str = ""

    def results(self, model: nn.Module, inputs: Any) -> Any:
        """What is compared of a call."""
        if not self.decides_after:
            return call_model(model, inputs)
        found: list[Any] = []
        module = model.get_submodule(self.decides_after)
        handle = module.register_forward_hook(lambda *call: found.append(call[2]))
        try:
            call_model(model, inputs)
        finally:
            handle.remove()
        return found

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


def prepared(model: nn.Module, inputs: Any, *, double: bool = True) -> tuple[nn.Module, Any]:
    """The model and its inputs in float64 (if asked); nothing in the model is constant."""
    if double:
        model, inputs = model.double(), map_tensors(inputs, _double)
    return _stirred(model), inputs


def _stirred(model: nn.Module) -> nn.Module:
    """Statistics and constant parameters drawn at random: zeros and ones hide wrong cuts."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.ndim == 1
                and len(tensor) > 1
                and bool((tensor == tensor[0]).all())
            ):
                low = 0.5 if float(tensor[0]) > 0 or "var" in name else -0.2
                tensor.copy_(torch.from_numpy(generator.uniform(low, low + 0.7, len(tensor))))
    return model


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
