"""Launch settings of the Triton kernels of the Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fairkern.ops import _tuned

PROGRAMS = 512  # about as many as keep a large GPU busy: vectors are split until there are so many
BLOCKS = 8  # position blocks that a program takes at least


@dataclass(frozen=True)
class Tile:
    """Channels on a side of a tile of the matrix, vectors that a program takes at a time."""

    channels: int
    positions: int
    warps: int


TILES = {"few channels": Tile(32, 32, 4), "many channels": Tile(64, 32, 8)}


def tile(channels: int, device: torch.device) -> Tile:
    situation = "many channels" if channels > 32 else "few channels"
    return _tuned.chosen("gram", situation, device, TILES[situation])


def splits(tiles: int, blocks: int) -> int:
    """Programs per tile; depends on shapes alone, so that the order of the sums does."""
    return max(1, min(PROGRAMS // tiles, blocks // BLOCKS))
