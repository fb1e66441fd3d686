"""Strings become enums at the edge of the API."""

from __future__ import annotations

import enum
from typing import Any, TypeVar

from fairkern.errors import InputError

Choice = TypeVar("Choice", bound=enum.Enum)


def choose(kind: type[Choice], name: str, value: Any) -> Choice:
    """The member of `kind` that `value` names. Raises InputError naming the choices."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind)
        raise InputError(f"{name} is {value!r}; expected one of {known}") from None
