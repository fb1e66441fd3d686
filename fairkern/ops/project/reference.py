"""The definition of the projection of a unit's positions onto directions."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.surroundings import uncast


@uncast
def project(x: Tensor, directions: Tensor, out: Tensor | None = None) -> Tensor:
    """[N, C, D], [D, P] → [N, C, P], into `out` if given."""
    return torch.matmul(x, directions, out=out)


def directions(d: int, p: int, seed: int) -> Tensor:
    """float32 [d, p], columns of length 1, drawn on the CPU in float64."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(p, d, generator=generator, dtype=torch.float64, device="cpu").T
    return (drawn / torch.linalg.vector_norm(drawn, dim=0)).to(torch.float32).contiguous()
