"""Backward elimination as it was before its steps were exact for all units: a rival.

Steps are exact among the cheapest units, in NumPy, and matrices are updated whole, and copied, after every panel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairkern.ops import View
from fairkern.ops.eliminate.config import ROUNDING
from fairkern.ops.eliminate.reference import first_of_least
from fairkern.ties import classes


def eliminate(view: View) -> tuple[Tensor, Tensor]:
    """Order of the units and what each adds, from panels of 128 units."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(view.covariance))
    panel = min(len(view.rows), max(16, min(128, len(view.rows) // 8)))
    return _eliminate([_View(inverse, view.output.clone(), view.covariance.diagonal(), view.rows)], panel)


def _eliminate(views: Sequence[_View], panel: int) -> tuple[Tensor, Tensor]:
    rows = views[0].rows
    left = torch.arange(len(rows), device=rows.device)
    order: list[Tensor] = []
    errors: list[Tensor] = []
    while len(left):
        costs, off = (
            torch.stack(each).sum(0).cpu().numpy() for each in zip(*((v.costs(), v.off()) for v in views), strict=True)
        )
        ranked = np.argsort(classes(costs, off), kind="stable")
        near = torch.from_numpy(np.sort(ranked[:panel])).to(left.device)
        bound = float((costs + off)[ranked[panel]]) if panel < len(left) else float("inf")
        chosen, added = _within([view.part(near) for view in views], bound)
        gone = near[chosen]
        order.append(left[gone])
        errors.append(added)
        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[gone] = False
        left = left[stays]
        for view in views:
            view.drop(gone, stays)
    return torch.cat(order), torch.cat(errors)


def _within(parts: Sequence[_View], bound: float) -> tuple[Tensor, Tensor]:
    """Exact steps within a panel, until a unit outside of it, which costs `bound` so far, would be cheaper.

    At least one step; at most half of the panel unless nothing is outside. Panels are small: on the CPU, in NumPy.
    """
    panels = [
        _Panel(
            p.inverse.cpu().numpy().copy(),
            p.output.cpu().numpy().copy(),
            p.variance.cpu().numpy(),
            p.rows.cpu().numpy(),
        )
        for p in parts
    ]
    units = len(parts[0].rows)
    chosen: list[int] = []
    added: list[float] = []
    for step in range(units if bound == float("inf") else max(1, units // 2)):
        costs = np.sum([panel.costs() for panel in panels], axis=0)
        costs[chosen] = np.inf
        unit = first_of_least(costs, np.sum([panel.off() for panel in panels], axis=0))
        if step and costs[unit] > bound:
            break
        chosen.append(unit)
        added.append(float(costs[unit]))
        for panel in panels:
            panel.refit(unit)
    device = parts[0].rows.device
    order = torch.tensor(chosen, dtype=torch.int64, device=device)
    return order, torch.tensor(added, dtype=torch.float64, device=device)


class _Panel:
    """What concerns the units of one panel in one view; arrays are its own."""

    def __init__(self, inverse: np.ndarray, output: np.ndarray, variance: np.ndarray, rows: np.ndarray) -> None:
        self.inverse, self.output, self.variance, self.rows = inverse, output, variance, rows

    def off(self) -> np.ndarray:
        """How far off each cost may be, [units]."""
        return ROUNDING * (np.diagonal(self.output) * self.variance)[self.rows].sum(1)

    def costs(self) -> np.ndarray:
        """What each unit would add, [units]; without meaning for one that is gone."""
        if self.rows.shape[1] == 1:
            place = self.rows[:, 0]
            return np.diagonal(self.output)[place] / np.diagonal(self.inverse)[place]
        across, down = self.rows[:, :, None], self.rows[:, None, :]
        fitted = np.linalg.solve(self.inverse[across, down], self.output[across, down])
        return np.trace(fitted, axis1=1, axis2=2)

    def refit(self, unit: int) -> None:
        """Give up one unit; its rows become those of a unit that was never read."""
        rows = self.rows[unit]
        across = self.inverse[:, rows]
        share = -np.linalg.solve(self.inverse[np.ix_(rows, rows)], across.T).T
        half = self.output[:, rows] + 0.5 * share @ self.output[np.ix_(rows, rows)]
        read = share @ half.T
        self.output += read
        self.output += read.T
        self.inverse += share @ across.T
        self.inverse[rows] = 0  # but for rounding they are
        self.inverse[:, rows] = 0
        self.inverse[rows, rows] = 1


class _View:
    """One inverse covariance, one `W Wᵀ`, the variances, and the rows of the units that are left."""

    def __init__(self, inverse: Tensor, output: Tensor, variance: Tensor, rows: Tensor) -> None:
        self.inverse, self.output, self.variance, self.rows = inverse, output, variance, rows

    def off(self) -> Tensor:
        """How far off each cost may be, [units]."""
        return ROUNDING * (self.output.diagonal() * self.variance)[self.rows].sum(1)

    def costs(self) -> Tensor:
        """What each unit would add, [units]."""
        if self.rows.shape[1] == 1:
            place = self.rows[:, 0]
            return self.output.diagonal()[place] / self.inverse.diagonal()[place]
        across, down = self.rows[:, :, None], self.rows[:, None, :]
        fitted = torch.linalg.solve(self.inverse[across, down], self.output[across, down])
        return fitted.diagonal(dim1=1, dim2=2).sum(1)

    def part(self, units: Tensor) -> _View:
        """What concerns these units alone."""
        rows = self.rows[units].reshape(-1)
        grid = torch.arange(len(rows), device=rows.device).reshape(len(units), -1)
        return _View(self.inverse[rows][:, rows], self.output[rows][:, rows], self.variance[rows], grid)

    def drop(self, gone: Tensor, stays: Tensor) -> None:
        """Give up several units and forget their rows."""
        rows = self.rows[gone].reshape(-1)
        self._update(rows)
        kept = torch.ones(len(self.inverse), dtype=torch.bool, device=rows.device)
        kept[rows] = False
        places = torch.cumsum(kept, 0) - 1
        self.inverse = self.inverse[kept][:, kept]
        self.output = self.output[kept][:, kept]
        self.variance = self.variance[kept]
        self.rows = places[self.rows[stays]]

    def _update(self, rows: Tensor) -> None:
        across = self.inverse[:, rows]
        share = -torch.linalg.solve(self.inverse[rows][:, rows], across.T).T  # C
        read = self.output[:, rows] @ share.T
        self.output += read + read.T + share @ self.output[rows][:, rows] @ share.T
        self.inverse += share @ across.T
