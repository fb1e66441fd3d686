"""A model walked block by block: one segment's weights and one boundary's activations at a time."""

from __future__ import annotations

import enum


class Walk(enum.Enum):
    """How a pass goes over a model: `whole`, batch by batch; or by `blocks`, all batches through each in turn."""

    WHOLE = "whole"
    BLOCKS = "blocks"


__all__ = ["Walk"]
