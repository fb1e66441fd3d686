"""The configuration of a pruned model: set to what is left."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from fairkern.model.fields import read_field
from fairkern.model.raised import in_words
from fairkern.types import ConfigChange


def set_config(config: Any, changes: Iterable[ConfigChange]) -> None:
    """Give the fields of a configuration the values that a cut leaves: all of them, or none if it refuses one.

    What the configuration raises passes through: a field may be computed from others, or checked when it is set.
    """
    before = []
    try:
        for change in changes:
            owner, name = _owner(config, change), change.name.rpartition(".")[2]
            before.append((owner, dict(vars(owner))))
            setattr(owner, name, change.after)
    except Exception:
        for owner, fields in reversed(before):
            vars(owner).clear()
            vars(owner).update(fields)
        raise


def follow_config(model: nn.Module, changes: Iterable[ConfigChange]) -> None:
    """`set_config` for a model that has been cut: a configuration that refuses stays as it was, with a warning."""
    changes = tuple(changes)
    try:
        set_config(model.config, changes)
    except Exception as error:
        names = ", ".join(change.name for change in changes)
        warnings.warn(
            f"the configuration refuses what the plan leaves ({names}) and stays: {in_words(error, model)}",
            stacklevel=2,
        )


def config_value(config: Any, change: ConfigChange) -> Any:
    """What a field holds; None where it is absent."""
    for part in change.name.split("."):
        config = read_field(config, part)
    return config


def _owner(config: Any, change: ConfigChange) -> Any:
    for part in change.name.split(".")[:-1]:
        config = getattr(config, part)
    return config
