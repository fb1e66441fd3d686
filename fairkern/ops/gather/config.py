"""Launch settings of the Triton gather."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fairkern.ops import _tuned

MAX_OUTER = 3  # dimensions before the trailing one: two outer dimensions and columns


@dataclass(frozen=True)
class Block:
    """Elements of a row that a program copies."""

    elements: int
    warps: int


def block(row: int, device: torch.device) -> Block:
    """`row`: elements of columns × trailing."""
    elements = min(max(64, 1 << (row - 1).bit_length()), 1024)
    configured = Block(elements, max(1, min(4, elements // 128)))
    return _tuned.chosen("gather", f"{elements} elements", device, configured)
