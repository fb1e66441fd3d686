"""A model of the same class, built on the meta device from its configuration with some fields changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fairkern.compact.config import set_config
from fairkern.compact.sites import SizedForward
from fairkern.model.fields import configurations
from fairkern.model.on_meta import parameters_on_meta
from fairkern.model.tensors import named_tensors
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
    """The buffers, by name, that the model's class computes from its configuration, on the CPU: tables that no file
    has, as of rotary embeddings. None of a model without a configuration, or whose class is built otherwise.

    No parameter outlives its registration: peak memory is one of them, never written to, beside the buffers.
    """
    if next(configurations(model), None) is None:
        return {}
    kind = model._original if isinstance(model, SizedForward) else type(model)

    try:
        with torch.random.fork_rng([]), torch.device("cpu"), parameters_on_meta():
            made = kind(copy.deepcopy(model.config))
    except Exception:  # a class that is built otherwise
        return {}
    return {name: tensor for name, tensor in named_tensors(made).items() if not isinstance(tensor, nn.Parameter)}
