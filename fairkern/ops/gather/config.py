"""Launch settings of the Triton gather."""

from __future__ import annotations

from dataclasses import dataclass

MAX_OUTER = 3  # dimensions before the trailing one: two outer dimensions and columns


@dataclass(frozen=True)
class Block:
    """Elements of a row that a program copies."""

    elements: int
    warps: int


def block(row: int) -> Block:
    """`row`: elements of columns × trailing."""
    elements = min(max(64, 1 << (row - 1).bit_length()), 1024)
    return Block(elements, max(1, min(4, elements // 128)))
