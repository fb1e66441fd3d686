"""A model of the same class, built on the meta device from its configuration with some fields changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fairkern.compact.config import set_config
from fairkern.compact.sites import SizedForward
from fairkern.model.fields import configurations
from fairkern.model.tensors import named_tensors
from fairkern.model.threads import of_this_thread
from fairkern.types import ConfigChange


def built_with(model: nn.Module, changes: Iterable[ConfigChange] = ()) -> nn.Module:
    """What the model's class makes of its configuration with these changes, without numbers.

    What the configuration or the class raises passes through: fields that cannot be set or do not fit together, a class
    that is built otherwise. Cost: building the model without its numbers.
    """
    kind = model._original if isinstance(model, SizedForward) else type(model)
    config = copy.deepcopy(model.config)
    set_config(config, changes)
    with torch.random.fork_rng([]), torch.device("meta"):
        return kind(config)


def buffers_built(model: nn.Module) -> dict[str, Tensor]:
    """The buffers, by name, that the model's class computes from its configuration, on the CPU: tables that no file has,
    as of rotary embeddings. None of a model without a configuration, or whose class is built otherwise.

    No parameter outlives its registration: peak memory is one of them, never written to, beside the buffers.
    """
    if next(configurations(model), None) is None:
        return {}
    kind = model._original if isinstance(model, SizedForward) else type(model)

    def without_values(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(of_this_thread(without_values))
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            made = kind(copy.deepcopy(model.config))
    except Exception:  # a class that is built otherwise
        return {}
    finally:
        handle.remove()
    return {name: tensor for name, tensor in named_tensors(made).items() if not isinstance(tensor, nn.Parameter)}
