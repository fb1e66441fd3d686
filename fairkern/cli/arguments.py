"""What an argument of a command may be, and what a misspelt option was meant to be."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that looks at the names of options first, so that a misspelt one is what its error names."""

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
