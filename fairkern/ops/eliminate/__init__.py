"""Backward elimination: in which order units are best given up if those that stay make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.errors import InputError, NonFiniteError
from fairkern.ops import _check
from fairkern.ops.eliminate import blocked
from fairkern.ops.eliminate.config import panel_units
from fairkern.options import instance, iterable, whole

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


def eliminate(views: Sequence[View], *, panel: int | None = None) -> Elimination:
    """Give up units one after the other, each time the one that costs least when the rest is fitted anew.

    The cost of a set is `Σ_views tr(W_Rᵀ S W_R)`, `R` being its positions and `S` their covariance given those that
    stay: what least-squares compensation cannot recover of the consumers' outputs. Costs that differ by less than 10⁻⁵
    of what a unit gives by itself (`(W Wᵀ)_uu · C_uu`) are equal, and the lower index goes first, so that the order
    does not depend on how the moments were summed.

    Args:
        views: one or more, float64, on one device, with the same number of units; a ridge keeps them definite.
        panel: how many units are looked at closely at a time; `units` makes every step exact, None takes the
            configured number. Units outside the panel are weighed again when it has been gone through.

    Returns:
        `Elimination`. The errors are made non-decreasing (a running maximum), so that a threshold takes a prefix.

    Raises:
        InputError: shapes, dtypes or devices that do not agree. NonFiniteError: a covariance that is not definite.

    Cost: about 4 n³ multiply-adds per view in matrix products, and panel² per unit.

    Example:
        >>> covariance = torch.eye(3, dtype=torch.float64)
        >>> output = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
        >>> eliminate([View(covariance, output, torch.arange(3)[:, None])])
        Elimination(order=tensor([1, 2, 0]), error=tensor([1., 2., 3.], dtype=torch.float64))
    """
    iterable("views", views, "views")
    views = [instance(f"view {i}", view, View, "an ops.View") for i, view in enumerate(views)]
    if not views:
        raise InputError("no views were given; expected one or more")
    units = sum(_check.tensor("rows 0", views[0].rows).shape[:1])
    for i, view in enumerate(views):
        n = sum(_check.tensor(f"covariance {i}", view.covariance).shape[:1])
        _check.tensor(f"rows {i}", view.rows)
        for name, matrix in (("covariance", view.covariance), ("output", view.output)):
            if _check.floating(f"{name} {i}", matrix).dtype != torch.float64 or matrix.shape != (n, n):
                raise InputError(
                    f"{name} {i} is {matrix.dtype} of shape {tuple(matrix.shape)}; expected float64 {(n, n)}"
                )
        _check.same_device(covariance=views[0].covariance, output=view.output, rows=view.rows)
        _check.index(f"rows {i}", view.rows.reshape(-1), n, view.rows.device)
        if view.rows.ndim != 2 or len(view.rows) != units:
            raise InputError(f"rows {i} has shape {tuple(view.rows.shape)}; expected [{units}, positions of a unit]")
    panel = panel_units(units) if panel is None else whole("panel", panel, 1)
    inverses = []
    for i, view in enumerate(views):
        factor, failed = torch.linalg.cholesky_ex(view.covariance)
        if bool(failed) or not bool(torch.isfinite(factor).all()):
            raise NonFiniteError(f"covariance {i} is not positive definite; add a ridge to its diagonal")
        inverses.append(torch.cholesky_inverse(factor))
    order, error = blocked.eliminate(
        inverses,
        [v.output.clone() for v in views],
        [v.covariance.diagonal() for v in views],
        [v.rows for v in views],
        panel,
    )
    return Elimination(order, error.clamp_min(0).cummax(0).values)
