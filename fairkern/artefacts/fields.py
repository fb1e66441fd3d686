"""Typed reading of decoded JSON: every complaint names the file and the place."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from fairkern.errors import ArtefactError


class Fields:
    """An entry of a file and where it was found. Readers return plain values or raise ArtefactError."""

    def __init__(self, value: Any, path: str | os.PathLike[str], where: str = "") -> None:
        self.value, self.path, self.where = value, path, where

    def fail(self, what: str) -> NoReturn:
        place = f", at {self.where}" if self.where else ""
        raise ArtefactError(f"{self.path}{place}: {what}; the file is damaged or was edited: write it again")

    def _wrong(self, expected: str) -> NoReturn:
        shown = repr(self.value)
        self.fail(f"found {shown if len(shown) < 60 else shown[:57] + '…'}, expected {expected}")

    def __getitem__(self, key: str) -> Fields:
        entries = self.entries()
        if key not in entries:
            self.fail(f"the entry {key!r} is missing")
        return entries[key]

    def entries(self) -> dict[str, Fields]:
        """An object's entries."""
        if not isinstance(self.value, dict):
            self._wrong("an object")
        prefix = f"{self.where}." if self.where else ""
        return {key: Fields(value, self.path, f"{prefix}{key}") for key, value in self.value.items()}

    def items(self, length: int | None = None) -> list[Fields]:
        """A list's items, `length` of them if given."""
        if not isinstance(self.value, list) or (length is not None and len(self.value) != length):
            self._wrong("a list" if length is None else f"a list of {length}")
        return [Fields(value, self.path, f"{self.where}[{i}]") for i, value in enumerate(self.value)]

    def optional_items(self, key: str) -> list[Fields]:
        """The items of a list that files of an older schema do not have."""
        entry = self.entries().get(key)
        return [] if entry is None else entry.items()

    def get(self, key: str, default: Any) -> Fields:
        """An object's entry, or `default` where a file of an older schema has none."""
        return self.entries().get(key) or Fields(default, self.path, f"{self.where}.{key}".lstrip("."))

    def text(self) -> str:
        if not isinstance(self.value, str):
            self._wrong("text")
        return self.value

    def optional_text(self) -> str | None:
        return None if self.value is None else self.text()

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self._wrong("true or false")
        return self.value

    def whole(self, least: int | None = 0, below: int | None = None) -> int:
        """A whole number, at least `least`, less than `below`."""
        value = self.value
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or (least is not None and value < least)
            or (below is not None and value >= below)
        ):
            low = "" if least is None else f", at least {least}"
            self._wrong(f"a whole number{low}{'' if below is None else f', less than {below}'}")
        return value

    def optional_whole(self) -> int | None:
        return None if self.value is None else self.whole()

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            self._wrong("a number")
        return self.value

    def wholes(self) -> tuple[int, ...]:
        return tuple(item.whole() for item in self.items())

    def names(self) -> tuple[str, ...]:
        """Texts, no two of them equal."""
        found = tuple(item.text() for item in self.items())
        if len(set(found)) < len(found):
            self.fail("a name comes twice")
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and their sizes."""
        return {name: entry.wholes() for name, entry in self.entries().items()}

    def axis_length(self, shapes: dict[str, tuple[int, ...]], tensor: str, dim: int, length: int) -> None:
        """Complains unless the tensor is known and this long along `dim`."""
        if tensor not in shapes:
            self.fail(f"the tensor {tensor!r} is not among the shapes")
        shape = shapes[tensor]
        if dim >= len(shape) or shape[dim] != length:
            self.fail(f"dim {dim} of {tensor!r} is given the length {length}, but its shape is {shape}")
