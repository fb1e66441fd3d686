"""What an argument of a command may be, and what a misspelt option was meant to be."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

_KEYWORD = re.compile(
    r"""\w+\([^()]*\)  # a call is Python, and stays so
    |(?<![\w./'"-])(?P<name>[a-z]\w*)=(?P<value>'[^']*'|\w*)
    (?P<said>[ ]\(--[\w -]+\)|,[ ]--[\w-]+)?  # the option, where the message knows it
    (?P<more>[^\s,;:)]?)""",
    re.VERBOSE,
)
_FIRST = re.compile(r"([a-z]\w*)(?= is )")
_PLAIN = re.compile(r"'([^\s']+)'")
_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?) ?(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that looks at the names of options first, so that a misspelt one is what its error names."""

    def in_options(self, message: str) -> str:
        """What the API says of its keywords, said of the options that they come from: `seed=-1` is `--seed -1`."""
        first = _FIRST.match(message)
        if first and (options := self._options(first[1])):
            message = f"{options[0].option_strings[-1]}{message[first.end() :]}"
        return _KEYWORD.sub(self._in_options, message)

    def _options(self, name: str) -> list[argparse.Action]:
        return [action for action in self._actions if action.dest == name and action.option_strings]

    def _in_options(self, found: re.Match[str]) -> str:
        options, value, more = self._options(found["name"] or ""), found["value"], found["more"]
        if not options or value == "lambda":
            return found[0]
        if found["said"]:
            return f"{found['said'].strip(' (),')}{more}"
        for option in options:
            if option.nargs == 0 and value == repr(option.const):
                return f"{option.option_strings[-1]}{more}"
        named = next((option for option in options if option.nargs != 0 or not value + more), None)
        if named is None:
            return found[0]
        truth = {"True": "yes", "False": "no"}.get(value)
        value = truth if truth in (named.choices or ()) and truth else _PLAIN.sub(r"\1", value)
        return " ".join(part for part in (named.option_strings[-1], f"{value}{more}") if part)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if args is not None and self._subparsers is None:
            for word in args[: args.index("--") if "--" in args else None]:
                name = word.partition("=")[0]
                if name.startswith("--") and name not in self._option_string_actions:
                    known = [option for option in self._option_string_actions if option.startswith("--")]
                    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                    self.error(f"there is no option {name}" + (f"; did you mean {close[0]}?" if close else ""))
        return super().parse_known_args(args, namespace)


def path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; '.' is the current folder")
    return Path(text)


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def size(text: str) -> int:
    """Bytes: 2000000000, 2GB, 1.5G, 512MiB."""
    found = _SIZE.fullmatch(text.strip())
    unit = (1024 if found[3] else 1000) ** (" kmgt".index((found[2] or " ").lower())) if found else 0
    number = int(Fraction(found[1]) * unit) if found else 0
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes above 0; expected for example 2000000000, 2GB (or 2G), or 512MiB"
        )
    return number


def by_kind(text: str, example: str = "expert=2") -> dict[str, int]:
    """`neuron=128,head=1`: whole numbers by kind of unit."""
    found = {}
    for part in text.split(","):
        kind, equals, number = (piece.strip() for piece in part.partition("="))
        if not (kind and equals):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form KIND=N,KIND=N, as in {example}")
        if kind in found:
            raise argparse.ArgumentTypeError(f"{text!r} says two numbers for {kind}")
        found[kind] = positive(number)
    return found


def divisors(text: str) -> int | dict[str, int]:
    """A whole number for all kinds of unit, or one by kind."""
    if "=" in text:
        return by_kind(text, "neuron=128,head=1")
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor KIND=N,KIND=N, as in neuron=128,head=1") from None


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return number
