"""Fields of a model's configuration that count what can be cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConfigField:
    """A field of the model's configuration that counts units: `size · kept / units` when its groups agree on that.

    `name` is dotted ("text_config.intermediate_size"). `before` is what it holds, None where it is left to a default
    of `size`. `fixed`: the field is set to `size` when its groups are cut (the size of a head). `admitted`: the values
    that the configuration's own validators let through, ascending, together with those of the other fields that count
    the same groups; None: whatever is no more than `size`.
    """

    name: str
    before: int | None
    size: int
    groups: tuple[int, ...]
    fixed: bool = False
    admitted: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ConfigChange:
    """A field of the model's configuration, before and after the cut (see `ConfigField`)."""

    name: str
    before: int | None
    after: int
