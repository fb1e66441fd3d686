"""Launch settings of the Triton kernel of the projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fairkern.ops import _tuned


@dataclass(frozen=True)
class Tile:
    """Channels × directions that a program holds, positions that it takes at a time."""

    channels: int
    directions: int
    positions: int
    warps: int


def tile(channels: int, directions: int, device: torch.device) -> Tile:
    """A program's sums stay in registers: 16 to 32 a thread."""
    across = min(max(16, 1 << (directions - 1).bit_length()), 64)
    down = min(max(16, 1 << (channels - 1).bit_length()), 64)
    configured = Tile(down, across, 32, 4 if across * down <= 2048 else 8)
    return _tuned.chosen("project", f"{down} × {across}", device, configured)
