"""Typed reading of decoded JSON: every complaint names the file and the place."""

from __future__ import annotations

import os
import reprlib
import sys
from typing import Any, NoReturn

from fairkern.artefacts.files import plain
from fairkern.errors import ArtefactError, InputError

LIMIT = 2**53
"""Whole numbers in files stay below it: up to there a JSON reader of any language tells them apart."""

_SHOWN = reprlib.Repr()  # of values without end, only the beginning
_SHOWN.maxlist = _SHOWN.maxdict = 20
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = 60


class Fields:
    """An entry of a file and where it was found. Readers return plain values or raise ArtefactError."""

    def __init__(self, value: Any, path: str | os.PathLike[str], where: str = "") -> None:
        self.value, self.path, self.where = value, path, where

    def fail(self, what: str) -> NoReturn:
        place = f", at {self.where}" if self.where else ""
        raise ArtefactError(f"{self.path}{place}: {what}; the file is damaged or was edited: write or fetch it again")

    def _wrong(self, expected: str) -> NoReturn:
        shown = _SHOWN.repr(self.value)
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

    def whole(self, least: int = 0, below: int = LIMIT) -> int:
        """A whole number, at least `least`, less than `below`."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
            low = "" if least == -LIMIT else f", at least {least}"
            self._wrong(f"a whole number{low}, less than {below if below < LIMIT else '2^53'}")
        return value

    def optional_whole(self) -> int | None:
        return None if self.value is None else self.whole()

    def number(self) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            self._wrong("a number, a finite one")
        return value

    def mapping(self) -> dict[str, Any]:
        """An object of which this reader asks no more than that it can be written again."""
        self.entries()
        try:
            return plain(self.value, self.where)
        except InputError as error:
            self.fail(str(error))

    def wholes(self) -> tuple[int, ...]:
        return tuple(item.whole() for item in self.items())

    def pairs(self) -> list[tuple[int, int]]:
        """A list of pairs of whole numbers."""
        found = []
        for i, value in enumerate(self.value if isinstance(self.value, list) else self.items()):
            if type(value) is list and len(value) == 2 and type(value[0]) is type(value[1]) is int:
                first, second = value  # files have many; what is wrong in one is said by the others' checks
                if 0 <= first < LIMIT and 0 <= second < LIMIT:
                    found.append((first, second))
                    continue
            one, other = Fields(value, self.path, f"{self.where}[{i}]").items(2)
            found.append((one.whole(), other.whole()))
        return found

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
