"""Backward elimination in blocks of exact steps: columns made when they are asked for, matrices updated by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fairkern.errors import NonFiniteError
from fairkern.ops import _native
from fairkern.ops.eliminate import halves, native
from fairkern.ops.eliminate.config import GONE, ROUNDING
from fairkern.ties import classes


def eliminate(
    inverses: Sequence[Tensor],
    outputs: Sequence[Tensor],
    variances: Sequence[Tensor],
    rows: Sequence[Tensor],
    panel: int,
    most: int,
    fast: bool,
    told: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """Order of the units and the squared error that each adds when it goes.

    `inverses` [n, n]: of the covariances, whose diagonals are `variances` [n]; `outputs` [n, n]: W Wᵀ, W being kept
    fitted as units go; of both the lower halves count, and both are lost. With `A` the inverse over what stays, giving
    up positions `u` costs `tr(A_uu⁻¹ (W Wᵀ)_uu)`; what stays is refitted by `W ← W + C W_u` with `C = −A_:u A_uu⁻¹`,
    and `A ← A + C A_u:`. Of units whose costs rounding may tell apart (`config.ROUNDING`) the first goes first.

    About `panel` positions go before the matrices are updated, by one product; meanwhile the columns of a unit are made
    when it goes, from those of the units that went, and of all others the diagonal is kept. `most` units go so; those
    behind them by what they would add next. `fast`: matrices are narrowed to float32, where columns are taken from, and
    products added; panels and diagonals stay in float64. `told`: the share of the work that is done.

    Raises NonFiniteError where rounding has made the inverse indefinite.
    """
    scale = 1.0
    if fast:
        variances, scale = _balanced(inverses, outputs, variances)
    views = [_View(*view, fast) for view in zip(inverses, outputs, variances, rows, strict=True)]
    units = len(rows[0])
    left = torch.arange(units, device=rows[0].device)
    order: list[Tensor] = []
    errors: list[Tensor] = []
    while (done := units - len(left)) < most:
        steps = max(1, panel // max(view.rows.shape[1] for view in views))
        chosen, added = _steps(views, min(steps, most - done))
        if not bool(torch.isfinite(added).all()):
            raise NonFiniteError("the covariances are definite by less than rounding; add a ridge to their diagonals")
        order.append(left[chosen])
        errors.append(added)
        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[chosen] = False
        left = left[stays]
        for view in views:
            view.settle(chosen, stays)
        told(0.5 + 0.5 * (1 - (len(left) / units) ** 3))
    if len(left):
        costs, off = (sum(each) for each in zip(*((v.costs(), v.off()) for v in views), strict=True))
        ranked = classes(costs.cpu().numpy(), off.cpu().numpy())
        last = torch.from_numpy(np.argsort(ranked, kind="stable")).to(left.device)
        order.append(left[last])
        errors.append(costs[last])
        told(1.0)
    return torch.cat(order), torch.cat(errors) / scale


def _balanced(
    inverses: Sequence[Tensor], outputs: Sequence[Tensor], variances: Sequence[Tensor]
) -> tuple[list[Tensor], float]:
    """Multiply the matrices so that float32 holds them; the variances that go with them, and what costs became times.

    Both matrices of a view by one number, so that views count as before, and all outputs by one more.
    """
    own = [1 / float(inverse.diagonal().mean()) for inverse in inverses]
    sizes = [by * float(output.diagonal().mean()) for by, output in zip(own, outputs, strict=True)]
    scale = 1 / max(sizes) if max(sizes) > 0 else 1.0
    for by, inverse, output in zip(own, inverses, outputs, strict=True):
        inverse *= by
        output *= by * scale
    return [variance / by for variance, by in zip(variances, own, strict=True)], scale


def _steps(views: Sequence[_View], count: int) -> tuple[Tensor, Tensor]:
    """So many exact steps: the units, as numbers among those that are left, and what each adds."""
    units, device = len(views[0].rows), views[0].rows.device
    chosen = torch.empty(count, dtype=torch.int64, device=device)
    added = torch.empty(count, dtype=torch.float64, device=device)
    gone = torch.zeros(units, dtype=torch.float64, device=device)
    for view in views:
        view.open(count)
    if device.type == "cpu" and all(view.rows.shape[1] == 1 for view in views) and _native.unavailable() is None:
        return native.steps([view.arrays() for view in views], count)
    for step in range(count):
        costs, off = gone + views[0].costs(), views[0].off()
        for view in views[1:]:
            costs += view.costs()
            off += view.off()
        least = costs.argmin(0, keepdim=True)
        near = costs <= costs[least] + torch.maximum(off, off[least])
        unit = near.to(torch.uint8).argmax(0, keepdim=True)  # the first; no number that a GPU would be waited for
        chosen[step : step + 1] = unit
        added[step : step + 1] = costs[unit]
        gone.index_fill_(0, unit, torch.inf)
        for view in views:
            view.give_up(unit, step)
    return chosen, added


class _View:
    """One inverse covariance, one `W Wᵀ`, the variances, and the rows of the units that are left.

    Positions that went stay in the matrices until there are enough of them for a copy to pay.
    """

    def __init__(self, inverse: Tensor, output: Tensor, variance: Tensor, rows: Tensor, fast: bool) -> None:
        self.rows = rows
        self.noise = ROUNDING * variance
        self.alive = torch.ones_like(self.noise)  # 0 where a position went
        self.inverse_blocks, self.output_blocks = self._blocks(inverse), self._blocks(output)
        self.inverse, self.output = (halves.narrowed(m) if fast else m for m in (inverse, output))

    def _blocks(self, matrix: Tensor) -> Tensor:
        """What a matrix holds for each unit, [units, r, r]."""
        across, down = self.rows[:, :, None], self.rows[:, None, :]
        return matrix[torch.maximum(across, down), torch.minimum(across, down)]

    def off(self) -> Tensor:
        """How far off each cost may be, [units]."""
        return (self.output_blocks.diagonal(dim1=1, dim2=2) * self.noise[self.rows]).sum(1)

    def costs(self) -> Tensor:
        """What each unit would add, [units]; zero for one that is gone."""
        if self.rows.shape[1] == 1:
            return (self.output_blocks / self.inverse_blocks).view(-1)
        return torch.linalg.solve_ex(self.inverse_blocks, self.output_blocks)[0].diagonal(dim1=1, dim2=2).sum(1)

    def arrays(self) -> native.Arrays:
        """What the compiled steps read and change."""
        blocks = self.inverse_blocks, self.output_blocks
        return native.Arrays(
            self.inverse, self.output, self.rows, self.noise, self.alive, *blocks, self.half, self.mixed
        )

    def open(self, steps: int) -> None:
        """Room for what so many units change: `inverse −= halfᵀ half`, `output += halfᵀ mixed + mixedᵀ half`."""
        size = (steps * self.rows.shape[1], len(self.inverse))
        self.half = torch.zeros(size, dtype=torch.float64, device=self.inverse.device)
        self.mixed = torch.zeros(size, dtype=torch.float64, device=self.inverse.device)

    def give_up(self, unit: Tensor, step: int) -> None:
        """What goes with one unit, int64 [1]; its rows become those of a unit that was never read."""
        rows, width = self.rows[unit].view(-1), self.rows.shape[1]
        half, mixed = self.half[: step * width], self.mixed[: step * width]
        own, others = half[:, rows].T, mixed[:, rows].T
        inverse = (halves.columns(self.inverse, rows).double() - own @ half) * self.alive
        output = (halves.columns(self.output, rows).double() + own @ mixed + others @ half) * self.alive
        factor, failed = torch.linalg.cholesky_ex(inverse[:, rows])
        factor = torch.where(failed > 0, torch.nan, factor)
        made = torch.linalg.solve_triangular(factor, inverse, upper=False)
        share = torch.linalg.solve_triangular(factor.T, made, upper=True)  # −C
        read = torch.linalg.solve_triangular(factor, 0.5 * output[:, rows] @ share - output, upper=False)
        self.alive.index_fill_(0, rows, 0)
        made.index_fill_(1, rows, 0)
        read.index_fill_(1, rows, 0)
        self.half[step * width : (step + 1) * width] = made
        self.mixed[step * width : (step + 1) * width] = read
        a, h = made[:, self.rows].movedim(0, -1), read[:, self.rows].movedim(0, -1)  # [units, r, r]
        self.inverse_blocks -= a @ a.mT
        crossed = a @ h.mT
        self.output_blocks += crossed + crossed.mT
        self.inverse_blocks[unit] = torch.eye(width, dtype=torch.float64, device=rows.device)
        self.output_blocks.index_fill_(0, unit, 0)

    def settle(self, chosen: Tensor, stays: Tensor) -> None:
        """Update both matrices, and forget the units that went."""
        count = len(self.half)
        both = torch.cat([self.half, self.mixed, self.half]).to(self.inverse.dtype)
        halves.add_products(self.inverse, both[:count], both[:count], -1.0)
        halves.add_products(self.output, both[: 2 * count], both[count:], 1.0)
        self.rows = self.rows[stays]
        self.inverse_blocks, self.output_blocks = self.inverse_blocks[stays], self.output_blocks[stays]
        kept = self.alive.nonzero().view(-1)
        if len(kept) <= (1 - GONE) * len(self.alive):
            self.inverse, self.output = halves.squeezed(self.inverse, kept), halves.squeezed(self.output, kept)
            self.noise = self.noise[kept]
            self.rows = (torch.cumsum(self.alive, 0).long() - 1)[self.rows]
            self.alive = torch.ones_like(self.noise)
