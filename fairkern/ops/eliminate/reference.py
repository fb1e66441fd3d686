"""The definition of backward elimination, by solving every fit from scratch. For tests: O(units² · n³)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairkern.ops.eliminate.config import ROUNDING


def first_of_least(costs: np.ndarray, off: np.ndarray) -> int:
    """The first unit whose cost is the least, or more by no more than one of the two may be `off`."""
    least = int(np.argmin(costs))
    return int(np.argmax(costs <= costs[least] + np.maximum(off, off[least])))


def stays(covariance: Tensor, removed: Tensor) -> Tensor:
    """The positions that are not removed, ascending."""
    everything = torch.arange(len(covariance), device=covariance.device)
    return everything[~torch.isin(everything, removed)]


def cost(covariance: Tensor, output: Tensor, removed: Tensor) -> float:
    """`tr(W_Rᵀ S W_R)` for `S = C_RR − C_RK C_KK⁻¹ C_KR`."""
    kept = stays(covariance, removed)
    own, cross = covariance[removed][:, removed], covariance[removed][:, kept]
    left = own - cross @ torch.linalg.solve(covariance[kept][:, kept], cross.T) if len(kept) else own
    return float((left * output[removed][:, removed]).sum())


def given(covariance: Tensor, output: Tensor, unit: Tensor, removed: Tensor) -> float:
    """`Σ C_rr (W Wᵀ)_rr` over the positions of a unit, `W` being fitted to what is left: what it gives by itself."""
    kept = stays(covariance, removed)
    fitted = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)[kept]
    fitted[:, removed] = torch.linalg.solve(covariance[kept][:, kept], covariance[kept][:, removed])
    power = (fitted @ output @ fitted.T).diagonal() * covariance.diagonal()[kept]
    return float(power[torch.isin(kept, unit)].sum())


def eliminate(
    covariances: Sequence[Tensor], outputs: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Order and added cost, every step exact; ties, up to rounding, go to the lower index."""
    alive = list(range(len(rows[0])))
    gone: list[int] = []
    order, added, before = [], [], 0.0
    while alive:
        costs = [
            sum(cost(c, h, r[[*gone, unit]].reshape(-1)) for c, h, r in zip(covariances, outputs, rows, strict=True))
            for unit in alive
        ]
        off = [
            sum(given(c, h, r[unit], r[gone].reshape(-1)) for c, h, r in zip(covariances, outputs, rows, strict=True))
            for unit in alive
        ]
        best = first_of_least(np.array(costs) - before, ROUNDING * np.array(off))
        added.append(costs[best] - before)
        before = costs[best]
        gone.append(alive[best])
        order.append(alive.pop(best))
    device = rows[0].device
    return (
        torch.tensor(order, dtype=torch.int64, device=device),
        torch.tensor(added, dtype=torch.float64, device=device),
    )
