"""How the tensors of a checkpoint's files are made of a model's parameters, where they are not simply these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Places = int | tuple[int, int, int]
"""What of a dimension of a parameter lies in a file: one position, or (file dimension, start, step) along that."""


@dataclass(frozen=True)
class FilePart:
    """A part of a file's tensor, and what of which parameter it holds.

    Position `(i_0, i_1, …)` of the part is the parameter's at `index`: its dimension `d` has the position `index[d]`,
    or `start + step · i_f` where `index[d]` is `(f, start, step)`.
    """

    parameter: str
    index: tuple[Places, ...]
    length: int  # along the dimension in which the parts of the tensor lie one behind the other
    turns: int = 1  # of so many parts in a row, this one among them, each has every so-manieth position


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file, parts one behind the other: an expert of a stack, half of a matrix, a transposed one."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[FilePart, ...]
    along: int = 0

    def placed(self) -> Iterator[list[tuple[FilePart, slice]]]:
        """Parts that take turns, or one part, with their positions along the dimension in which parts lie."""
        start, k = 0, 0
        while k < len(self.parts):
            turns, length = self.parts[k].turns, self.parts[k].length
            stop = start + turns * length
            yield [(part, slice(start + turn, stop, turns)) for turn, part in enumerate(self.parts[k : k + turns])]
            start, k = stop, k + turns


@dataclass(frozen=True)
class Files:
    """What names and tensors files have. Those that are not listed are parameters, by their names, as they are."""

    tensors: tuple[FileTensor, ...] = ()
    absent: tuple[str, ...] = ()  # tensors of the model that files do not hold: tied ones, buffers that are not saved
    ignored: tuple[str, ...] = ()  # tensors of files that the model has no place for
    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # entries of config.json, before and after
