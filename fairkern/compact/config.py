"""The configuration of a pruned model: set to what is left, and checked by building from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.sites import SizedForward
from fairkern.types import ConfigChange, Plan


def set_config(config: Any, plan: Plan) -> None:
    """Give the fields of a configuration the values that the plan leaves."""
    for change in plan.config:
        setattr(_owner(config, change), change.name.rpartition(".")[2], change.after)


def config_value(config: Any, change: ConfigChange) -> Any:
    """What a field holds; None where it is absent."""
    try:
        return getattr(_owner(config, change), change.name.rpartition(".")[2], None)
    except AttributeError:
        return None


def _owner(config: Any, change: ConfigChange) -> Any:
    for part in change.name.split(".")[:-1]:
        config = getattr(config, part)
    return config


def undescribed(model: nn.Module, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a model built from the changed configuration, on the meta device, does not have these shapes; None if it has.

    Cost: building the model without its numbers.
    """
    kind = model._original if isinstance(model, SizedForward) else type(model)
    config = copy.deepcopy(model.config)
    set_config(config, plan)
    try:
        with torch.random.fork_rng([]), torch.device("meta"):
            built = kind(config)
    except Exception as error:  # a configuration that does not fit together, a class that is built in another way
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    found: dict[str, Tensor] = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape:
            return f"{name} would have the shape {tuple(found[name].shape) if name in found else None}, not {shape}"
    return None
