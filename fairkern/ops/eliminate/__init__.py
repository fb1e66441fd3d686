"""Backward elimination: in which order units are best given up if those that stay make up for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.errors import InputError, NonFiniteError
from fairkern.ops import _check
from fairkern.ops.eliminate import blocked, halves, small
from fairkern.ops.eliminate.config import PANEL, SMALL, fast_pays
from fairkern.options import flag, function, instance, iterable, whole

__all__ = ["Elimination", "View", "eliminate"]


class View(NamedTuple):
    """One place where units are read: what is read there, and what is made of it."""

    covariance: Tensor  # [n, n], of the positions that are read; positive definite
    output: Tensor  # [n, n], W Wᵀ of the weights [n, outputs] that read them, in any unit of squared output
    rows: Tensor  # int64 [units, r], the positions of each unit; positions of no unit always stay


class Elimination(NamedTuple):
    """Units in the order in which they go, and what each adds to the squared error, never less than the one before."""

    order: Tensor  # int64 [units]
    error: Tensor  # float64 [units], by place in the order


def eliminate(
    views: Sequence[View],
    *,
    most: int | None = None,
    panel: int | None = None,
    fast: bool | None = None,
    overwrite: bool = False,
    told: Callable[[float], None] | None = None,
) -> Elimination:
    """Give up units one after the other, each time the one that costs least when the rest is fitted anew.

    The cost of a set is `Σ_views tr(W_Rᵀ S W_R)`, `R` being its positions and `S` their covariance given those that
    stay: what least-squares compensation cannot recover of the consumers' outputs. Costs that differ by less than 10⁻⁵
    of what a unit gives by itself (`(W Wᵀ)_uu · C_uu`) are equal, and the lower index goes first, so that the order
    does not depend on how the moments were summed. Every step is exact, but for what `fast` rounds.

    Args:
        views: one or more, float64, on one device, with the same number of units; a ridge keeps them definite.
        most: so many units go one after the other (None: all). The others follow, ordered by what each would add next
            if it went then, which is their error too: never cheaper than the last that went.
        panel: so many positions go before the matrices are updated; the result is the same, to rounding. None takes
            the configured number.
        fast: keep the matrices in float32 once they are inverted; what a block of steps makes of them, and what each
            unit costs, stays in float64. What the units that go first cost together is at most a hundredth more than
            in the exact order, for any number of them. None: from 8,192 positions on, and on GPUs whose float64 is
            slow.
        overwrite: the covariances and outputs may be lost, and no others are made: 2 matrices a view in all, not 4.
        told: called with the share of the work that is done, now and then.

    Returns:
        `Elimination`. The errors are made non-decreasing (a running maximum), so that a threshold takes a prefix.

    Raises:
        InputError: shapes, dtypes or devices that do not agree. NonFiniteError: a covariance that is not definite.

    Cost: about n³ multiply-adds per view, as one product of matrices of its size: half for the inverse, half for what
    changes as units go; with `most` units of `units`, `1 − (1 − most/units)³` of the latter. Nearly all of it is in
    products of symmetric matrices, of which half is made. Units of several positions take their own systems besides:
    those of all units at every step.

    Example:
        >>> covariance = torch.eye(3, dtype=torch.float64)
        >>> output = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
        >>> eliminate([View(covariance, output, torch.arange(3)[:, None])])
        Elimination(order=tensor([1, 2, 0]), error=tensor([1., 2., 3.], dtype=torch.float64))
    """
    views = _checked(views)
    units = len(views[0].rows)
    free, panel = panel is None, PANEL if panel is None else whole("panel", panel, 1)
    most = units if most is None else min(units, whole("most", most, 0))
    if told is not None:
        function("told", told, "a function of a share between 0 and 1")
    positions, device = max(len(view.covariance) for view in views), views[0].rows.device
    single = fast_pays(positions, device) if fast is None else flag("fast", fast)
    own = _itself if flag("overwrite", overwrite) else torch.clone
    rows = [view.rows.contiguous() for view in views]
    covariances, outputs = (
        [own(m.contiguous()) for m in given] for given in ([v.covariance for v in views], [v.output for v in views])
    )
    if free and not single and positions <= SMALL and units and small.runs(rows):
        order, error = small.eliminate(covariances, outputs, rows, most)
        (told or _silent)(1.0)
    else:
        variances = [covariance.diagonal().clone() for covariance in covariances]
        for i, covariance in enumerate(covariances):
            if not halves.invert(covariance):
                raise NonFiniteError(f"covariance {i} is not positive definite; add a ridge to its diagonal")
        order, error = blocked.eliminate(covariances, outputs, variances, rows, panel, most, single, told or _silent)
    return Elimination(order, error.clamp_min(0).cummax(0).values)


def _checked(views: Iterable[View]) -> list[View]:
    iterable("views", views, "views")
    views = [instance(f"view {i}", view, View, "an ops.View") for i, view in enumerate(views)]
    if not views:
        raise InputError("no views were given; expected one or more")
    units = sum(_check.tensor("rows 0", views[0].rows).shape[:1])
    for i, view in enumerate(views):
        n = sum(_check.floating(f"covariance {i}", view.covariance).shape[:1])
        _check.floating(f"output {i}", view.output)
        if i:
            _check.tensor(f"rows {i}", view.rows)
        for name, matrix in (("covariance", view.covariance), ("output", view.output)):
            if matrix.dtype != torch.float64 or matrix.shape != (n, n):
                raise InputError(
                    f"{name} {i} is {matrix.dtype} of shape {tuple(matrix.shape)}; expected float64 {(n, n)}"
                )
        _check.same_device(covariance=views[0].covariance, output=view.output, rows=view.rows)
        _check.index(f"rows {i}", view.rows.reshape(-1), n, view.rows.device)
        if view.rows.ndim != 2 or len(view.rows) != units:
            raise InputError(f"rows {i} has shape {tuple(view.rows.shape)}; expected [{units}, positions of a unit]")
    return views


def _itself(matrix: Tensor) -> Tensor:
    return matrix


def _silent(share: float) -> None:
    return None
