"""A model of the same class, built on the meta device from its configuration with some fields changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fairkern.compact.config import set_config
from fairkern.compact.sites import SizedForward
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
