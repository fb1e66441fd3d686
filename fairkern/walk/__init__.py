"""A model walked block by block: one segment's weights and one boundary's activations at a time."""

from __future__ import annotations

import enum
from typing import Any

from fairkern.errors import InputError
from fairkern.options import choose, place
from fairkern.ranks import Ranks


class Walk(enum.Enum):
    """How a pass goes over a model: `whole`, batch by batch; or by `blocks`, all batches through each in turn."""

    WHOLE = "whole"
    BLOCKS = "blocks"

    @classmethod
    def asked(cls, walk: Any, folder: Any, ranks: Ranks) -> tuple[Walk, str | None]:
        """What a caller gave as `walk` and `walk_folder`, checked. Raises InputError."""
        by = choose(cls, "walk", walk)
        if folder is not None and by is cls.WHOLE:
            raise InputError("walk_folder is for what passes between blocks: pass walk='blocks' too, or leave it out")
        if by is cls.BLOCKS and ranks.several:
            raise InputError("walk='blocks' is for one process: leave out walk= or ranks=")
        return by, None if folder is None else place("walk_folder", folder)


__all__ = ["Walk"]
