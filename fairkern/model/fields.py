"""Fields of a configuration object, as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def read_field(config: Any, name: str) -> Any:
    """A field, which may be an alias of another or be computed; None where it is absent or cannot be read."""
    try:
        return getattr(config, name, None)
    except Exception:  # a property raises what it likes
        return None


def bias_fields(model: nn.Module) -> dict[str, bool]:
    """The truth values of the model's configuration, and of those within, that speak of biases; names are dotted."""
    return {
        f"{prefix}{name}": value
        for prefix, config, _ in configurations(model)
        for name, value in vars(config).items()
        if isinstance(value, bool) and "bias" in name
    }


def configurations(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(prefix of its fields, configuration, prefix of the modules that it is for): the model's and those within."""
    config = vars(model).get("config")
    if not _is_config(config):
        return
    yield "", config, ""
    for name, inner in vars(config).items():
        if _is_config(inner):
            paths = [path for path, module in model.named_modules() if path and vars(module).get("config") is inner]
            if paths:
                yield f"{name}.", inner, f"{min(paths, key=len)}."


def _is_config(value: object) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module))
