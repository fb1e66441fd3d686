"""Sizes that modules hold as attributes or their code passes on, and modules that run as another class once cut."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class SizeAttribute:
    """A module attribute that holds a size (`Conv2d.out_channels`) and the extent that it follows.

    `attribute` may be dotted (`config.num_experts`). An attribute that comes several times is one size of several
    layers: it changes where all of them agree.
    `observed`: recognised by its value in what reshapes of its module were given (`Attention.num_heads`), not by
    the module's class.
    """

    module: str
    attribute: str
    extent: int  # index into `UnitMap.extents`
    observed: bool = False


class SiteNumber(NamedTuple):
    """A number that a module's code passes on: see `SizeSite`."""

    module: str
    at: str
    call: int | None
    place: int


class Passed(enum.IntEnum):
    """What the code of a cut model passes at a size site by itself, ordered by how much has to be done about it."""

    RIGHT = 0  # always the size that is left
    BEFORE = 1  # the size before the cut
    OTHER = 2  # something else: what is left of another group, of which as many units were meant


@dataclass(frozen=True)
class SizeSite:
    """A size that a module's own code passes to a call, as a number, and the extent that it follows.

    `at` says where the code makes the call (`fairkern.model.call_places`), and `call` which of the calls made there
    within one forward pass, from 0; None: all of them. (`at` is empty in older files: `call` counts all size-taking
    calls that the module makes itself.) `function` is the name of the function and `place` counts the numbers that it
    is given (`fairkern.model.size_calls`). `like`: the module that makes the same calls, where the example inputs did
    not reach this one. `guessed`: the number fills a dimension, and follows the extent for its value alone.
    `outright`: the size is given whatever the code passes, which may be the size of something else that was as long;
    where that is not so, what the code passes keeps its multiple.
    """

    module: str
    call: int | None
    function: str
    place: int
    extent: int  # index into `UnitMap.extents`
    like: str = field(default="", compare=False)
    at: str = ""
    guessed: bool = field(default=False, compare=False)
    outright: bool = field(default=False, compare=False)

    @property
    def number(self) -> SiteNumber:
        """Which number of which call it is; in the module that was seen to make it."""
        return SiteNumber(self.like or self.module, self.at, self.call, self.place)


@dataclass(frozen=True)
class Replacement:
    """A module that runs as another class of `fairkern.model.replacements`, equal in function, once it is cut."""

    module: str
    name: str
