"""Fields of a configuration object, as transformers has them."""

from __future__ import annotations

from typing import Any


def read_field(config: Any, name: str) -> Any:
    """A field, which may be an alias of another or be computed; None where it is absent or cannot be read."""
    try:
        return getattr(config, name, None)
    except Exception:  # a property raises what it likes
        return None
