"""What a caller gives at the edge of the API: strings become enums, and what is of the wrong kind is refused there."""

from __future__ import annotations

import difflib
import enum
import math
import numbers
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fairkern.errors import InputError

Choice = TypeVar("Choice", bound=enum.Enum)
Kind = TypeVar("Kind")

MODEL = "a torch.nn.Module"
UNITS = "a UnitMap, as from trace(…)"
SCORES = "Scores, as from score(…) or Scores.load(path)"
PLAN = "a Plan, as from scores.plan(…) or Plan.load(path)"
TABLE = "a latency table, as from latency_table(…)"
SEEDS = 2**63  # so many there are


def choose(kind: type[Choice], name: str, value: Any) -> Choice:
    """The member of `kind` that `value` names. Raises InputError naming the choices."""
    try:
        return kind(value)
    except ValueError:
        known = [member.value for member in kind]
        listed = ", ".join(map(repr, known))
        raise InputError(f"{name} is {short(value)}; expected one of {listed}{meant(value, known)}") from None


def instance(name: str, value: Any, kind: type[Kind], expected: str) -> Kind:
    """`value`, which is a `kind`. Raises InputError saying what was `expected`."""
    if not isinstance(value, kind):
        raise InputError(f"{_shown(name, value)}; expected {expected}")
    return value


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An int for a whole number of any library. Raises InputError for what is none, or out of range."""
    number = _scalar(value)
    expected = "a whole number" + ("" if least is None else f", at least {least}")
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise InputError(f"{_shown(name, value)}; expected {expected}")
    number = int(number)
    if least is not None and number < least:
        raise InputError(f"{name}={short(number)} is too small; expected {expected}")
    if most is not None and number > most:
        raise InputError(f"{name}={short(number)} is too large; expected a whole number, at most {most}")
    return number


def real(name: str, value: Any, expected: str = "a number") -> float:
    """A finite float for a number of any library. Raises InputError for what is none."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise InputError(f"{_shown(name, value)}; expected {expected}")
    try:
        made = float(number)
    except OverflowError:
        made = math.inf
    if not math.isfinite(made):
        raise InputError(f"{name}={short(number)} is not finite; expected {expected}")
    return made


def seed(value: Any) -> int:
    """A seed of random numbers. Raises InputError for what is none."""
    return whole("seed", value, 0, SEEDS - 1)


def flag(name: str, value: Any, expected: str = "True or False") -> bool:
    """True or False, of any library. Raises InputError: what merely counts as true may have been meant otherwise."""
    given = _scalar(value)
    if not isinstance(given, bool):
        raise InputError(f"{_shown(name, value)}; expected {expected}")
    return given


def function(name: str, value: Any, expected: str) -> None:
    """Raises InputError unless `value` can be called; nor may it be a class, of which an object is meant."""
    if isinstance(value, type) or not callable(value):
        made = f": pass {value.__name__}(…)" if isinstance(value, type) else ""
        raise InputError(f"{_shown(name, value)}; expected {expected}{made}")


def iterable(name: str, value: Any, expected: str) -> None:
    """Raises InputError unless `value` can be iterated; a text is no list of things."""
    if isinstance(value, (str, bytes)) or not _iterates(value):
        raise InputError(f"{_shown(name, value)}; expected {expected}")


def mapping(name: str, value: Any, expected: str) -> None:
    """Raises InputError unless `value` is a dictionary with names for keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{_shown(name, value)}; expected {expected}")


def names(name: str, value: Any, example: str) -> tuple[str, ...]:
    """Names or patterns; one may be given by itself. Raises InputError for what is none."""
    given = (value,) if isinstance(value, str) else tuple(value) if _iterates(value) else None
    if given is None or not all(isinstance(item, str) for item in given):
        raise InputError(f"{_shown(name, value)}, not a list of name patterns; expected for example {example}")
    return given


def place(name: str, value: Any) -> str:
    """The path of a file or folder. Raises InputError for what is none (a number is one of an open file), or empty."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(path := os.fspath(value), str):
        raise InputError(f"{_shown(name, value)}; expected a path, as text or a pathlib.Path")
    if not path or "\0" in path:
        what = "has a zero byte" if path else "is empty"
        raise InputError(f"{name} {what}; expected a path, '.' for the current folder")
    return path


def with_parents(name: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def meant(value: Any, known: Sequence[Any]) -> str:
    """The end of an error that says which of a few choices a misspelt one is likely to be."""
    words = [choice for choice in known if isinstance(choice, str)]
    close = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def several(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def near(name: str, known: Sequence[str]) -> str:
    """The end of an error that says which of the `known` names may have been meant."""
    found = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    if found:
        return f"; near names: {', '.join(found)}"
    return f"; names are for example {', '.join(known[:4])}" if known else ""


def short(value: Any) -> str:
    """A value in a few words of one line."""
    return " ".join(reprlib.repr(value).split())


def _scalar(value: Any) -> Any:
    """The Python number in an array or tensor without dimensions; anything else as it is."""
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not getattr(value, "is_meta", False)
    return value.item() if single else value


def _iterates(value: Any) -> bool:
    return isinstance(value, Iterable) and getattr(value, "ndim", None) != 0


def _shown(name: str, value: Any) -> str:
    """What was given, as the begin of an error: with its value where that is short."""
    if value is None:
        return f"{name} is None"
    if isinstance(value, type):
        return f"{name} is the class {value.__name__}"
    items = value if isinstance(value, (list, tuple, set)) else [value]
    plain = all(isinstance(item, (str, bytes, numbers.Number, bool, type(None))) for item in items)
    return f"{name}{f'={short(value)}' if plain else ''} is a {type(value).__name__}"
