"""The definition of backward elimination, by solving every fit from scratch. For tests: O(units² · n³)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cost(covariance: Tensor, output: Tensor, removed: Tensor) -> float:
    """`tr(W_Rᵀ S W_R)` for `S = C_RR − C_RK C_KK⁻¹ C_KR`."""
    n = len(covariance)
    stays = torch.ones(n, dtype=torch.bool)
    stays[removed] = False
    kept = torch.arange(n)[stays]
    own, cross = covariance[removed][:, removed], covariance[removed][:, kept]
    left = own - cross @ torch.linalg.solve(covariance[kept][:, kept], cross.T) if len(kept) else own
    return float((left * output[removed][:, removed]).sum())


def eliminate(
    covariances: Sequence[Tensor], outputs: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Order and added cost, every step exact; ties go to the lower index."""
    alive = list(range(len(rows[0])))
    gone: list[int] = []
    order, added, before = [], [], 0.0
    while alive:
        costs = [
            sum(cost(c, h, r[[*gone, unit]].reshape(-1)) for c, h, r in zip(covariances, outputs, rows, strict=True))
            for unit in alive
        ]
        best = min(range(len(alive)), key=costs.__getitem__)
        added.append(costs[best] - before)
        before = costs[best]
        gone.append(alive[best])
        order.append(alive.pop(best))
    return torch.tensor(order), torch.tensor(added, dtype=torch.float64)
