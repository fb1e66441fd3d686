"""Strings become enums at the edge of the API."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Sequence
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


def with_parents(name: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def near(name: str, known: Sequence[str]) -> str:
    """The end of an error that says which of the `known` names may have been meant."""
    found = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    if found:
        return f"; near names: {', '.join(found)}"
    return f"; names are for example {', '.join(known[:4])}" if known else ""
