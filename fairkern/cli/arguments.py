"""What an argument of a command may be."""

from __future__ import annotations

import argparse
import math
import re
from fractions import Fraction
from pathlib import Path

_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?) ?(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)


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
    """Above 0 and at most 1: 0.5, or 50%."""
    number = _part(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(_no_share(text, number, "is not a share above 0 and at most 1"))
    return number


def part(text: str) -> float:
    """Above 0 and below 1, such as what may go of a group: 0.9, or 90%."""
    number = _part(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(_no_share(text, number, "is not a share between 0 and 1"))
    return number


def tolerance(text: str) -> float:
    """From 0 to 1."""
    number = _part(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(_no_share(text, number, "is not a tolerance from 0 to 1"))
    return number


def shares(text: str) -> tuple[float, ...]:
    """Several, with commas between them: 0.9,0.7 or 90%,70%."""
    return tuple(share(item) for item in text.split(","))


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def wholes(text: str) -> tuple[int, ...]:
    """Several, with commas between them."""
    return tuple(whole(item) for item in text.split(","))


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def words(text: str) -> tuple[str, ...]:
    found = tuple(item.strip() for item in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has nothing between two commas")
    return found


def _part(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        return math.nan


def _no_share(text: str, number: float, why: str) -> str:
    if 1 < number <= 100 and "%" not in text:
        return f"{text!r} {why}; for {number:g} percent say {number / 100:g} or {number:g}%"
    return f"{text!r} {why}; expected for example 0.5 or 50%"
