"""Modules that are units as a whole: experts of a list, branches of residual blocks, and blocks that go with those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entries:
    """Modules of a list (`nn.ModuleList`, `nn.ModuleDict`) that are units: experts to which a router sends tokens.

    `names`: theirs in the list, in order. `width`: how many values each of them gives for a token.
    """

    names: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class BranchPart:
    """A module that is there for a branch alone, and what takes its place where the branch is gone.

    That gives zeros, of the size of one tensor that it is given (`source`: the number or the name of the argument):
    with `size` along dimension `dim`, if that is another. One that `passes` hands its argument on instead. What the
    module returns is the tensor, or a tuple of so many `entries`, of which it is the one at `place`.
    """

    module: str
    source: int | str = 0
    dim: int = -1
    size: int | None = None
    passes: bool = False
    entries: int = 0  # 0: a tensor
    place: int = 0
    extent: int | None = None  # of a map, which `size` follows: index into `UnitMap.extents`


@dataclass(frozen=True)
class Branch:
    """What is computed from a residual stream and added to it: attention, an MLP, convolutions.

    `parts`: its modules, in the order in which they run; the last one returns what is added. That has `width` values
    for every place, along dimension `dim`.
    """

    parts: tuple[BranchPart, ...]
    dim: int
    width: int

    @property
    def last(self) -> BranchPart:
        """The module that returns what the branch adds."""
        return self.parts[-1]


@dataclass(frozen=True)
class Numbers:
    """An attribute at one path within every module of a list; `values`: per module, None where it has none.

    They are the modules' numbers, or those that `numbered` gives the modules that have one.
    """

    within: str
    attribute: str
    values: tuple[int | None, ...]


def numbered(kinds: Sequence[str], counted: Sequence[bool]) -> list[int | None]:
    """Numbers of those modules of a list that are `counted`; None for the others.

    Of every kind they take the first numbers that modules of it have: what is kept for module 0 (a cache's) is looked
    at for all.
    """
    free = {kind: iter([k for k, other in enumerate(kinds) if other == kind]) for kind in set(kinds)}
    return [next(free[kind]) if there else None for kind, there in zip(kinds, counted, strict=True)]


@dataclass(frozen=True)
class Blocks:
    """A list of modules that run one after the other and of which those can go whose branches have all gone.

    `branches`: per module of the list, the units (name of the axis in `UnitMap.branches`, number) without which it
    hands on what it is given; none, where it does something else besides. `kinds`: per module, which of them the
    configuration counts alike (full and sliding attention). `numbers`: what holds the module's number in the list.
    `counts`: modules of the model and attributes (dotted) that hold how many
    there are; `rows`: those that hold an entry for each.
    """

    names: tuple[str, ...]
    branches: tuple[tuple[tuple[str, int], ...], ...]
    kinds: tuple[str, ...]
    numbers: tuple[Numbers, ...] = ()
    counts: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
