"""Launch settings of the Triton kernels of the Taylor sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fairkern.ops import _tuned

WORK = 1 << 14  # elements of each tensor that one program reads, about


@dataclass(frozen=True)
class Tile:
    """What a program of the first stage holds at a time. Launches are shared by layers of the same tile."""

    channels: int
    positions: int
    warps: int = 4


SUM_TILE = Tile(channels=32, positions=32)  # second stage: rows of partial sums for positions


@dataclass(frozen=True)
class Split:
    """How the samples and position blocks of a layer are dealt to programs."""

    chunk: int  # samples per program
    chunks: int
    blocks: int  # position blocks per program
    splits: int


TILES = {
    "channels innermost": Tile(channels=128, positions=8),
    "few positions": Tile(channels=32, positions=32),
    "some positions": Tile(channels=8, positions=128),
    "many positions": Tile(channels=1, positions=1024),
}


def tile(positions: int, channels_innermost: bool, device: torch.device) -> Tile:
    """`positions` is the innermost run of them (the samples where there is one position per sample)."""
    situation = "few positions" if positions <= 32 else "some positions" if positions <= 512 else "many positions"
    situation = "channels innermost" if channels_innermost else situation
    return _tuned.chosen("taylor", situation, device, TILES[situation])


def split(samples: int, position_blocks: int, chosen: Tile) -> Split:
    """Depends on shapes alone, so that the order of the sums does."""
    blocks_of_work = max(1, WORK // (chosen.channels * chosen.positions))
    if position_blocks <= blocks_of_work:
        chunk = min(samples, blocks_of_work // position_blocks)
        return Split(chunk, -(-samples // chunk), position_blocks, 1)
    splits = -(-position_blocks // blocks_of_work)
    blocks = -(-position_blocks // splits)
    return Split(1, samples, blocks, -(-position_blocks // blocks))
