"""The configuration of a pruned model: set to what is left."""

from __future__ import annotations

from typing import Any

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
