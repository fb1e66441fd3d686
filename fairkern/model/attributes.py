"""Numbers that modules hold, by a dotted path: `num_heads`, `config.num_experts`, `axes_lengths.h`, `sizes.0`.

A part of a path is an attribute or, in a plain dictionary, tuple or list, a key or a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def read_attribute(holder: Any, path: str) -> Any:
    """The value at `path`; None where there is none."""
    value = holder
    for part in path.split("."):
        value = value[_key(value, part)] if _holds(value, part) else getattr(value, part, None)
    return value


def write_attribute(holder: Any, path: str, value: Any) -> None:
    """Put `value` at `path`. Dictionaries, tuples and lists on the way become others: modules may share one."""
    _with(holder, path.split("."), value)


def whole_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and value of every whole number that a module holds as its own attribute."""
    for name, value in vars(module).items():
        if type(value) is int and name not in _OF_EVERY_MODULE:
            yield name, value


def named_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and value of every whole number that a module holds under a name in a dictionary, or in a tuple of pairs of
    name and number. Numbers without a name are data as often as sizes."""
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE:
            continue
        if type(value) is dict:
            yield from ((f"{name}.{key}", n) for key, n in value.items() if _named(key, n))
        elif type(value) is tuple and all(type(pair) is tuple and len(pair) == 2 for pair in value):
            yield from ((f"{name}.{i}.1", n) for i, (key, n) in enumerate(value) if _named(key, n))


def _named(key: Any, value: Any) -> bool:
    return type(key) is str and "." not in key and type(value) is int


def _holds(value: Any, part: str) -> bool:
    if type(value) is dict:
        return part in value
    return type(value) in (tuple, list) and part.isdigit() and int(part) < len(value)


def _key(value: Any, part: str) -> Any:
    return part if type(value) is dict else int(part)


def _with(holder: Any, parts: list[str], value: Any) -> Any:
    """The holder with `value` at the path: itself, or another one where it is a plain collection."""
    if not parts:
        return value
    part, *rest = parts
    if _holds(holder, part):
        key = _key(holder, part)
        entries = dict(holder) if type(holder) is dict else list(holder)
        entries[key] = _with(entries[key], rest, value)
        return tuple(entries) if type(holder) is tuple else entries
    setattr(holder, part, _with(getattr(holder, part), rest, value) if rest else value)
    return holder
