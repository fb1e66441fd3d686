"""Ridge regression from second moments: one linear system, solved by Cholesky in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.errors import NonFiniteError


def solve(inner: Tensor, cross: Tensor, ridge: float) -> tuple[Tensor, float]:
    """`cross @ (inner + added)⁻¹` by Cholesky, zero where the diagonal is, and what was `added` to it.

    That is `ridge` means of the diagonal; tenfold, as often as it takes, where it is lost in rounding.
    Raises NonFiniteError where either holds NaN or Inf.
    """
    if not bool(torch.isfinite(inner).all() and torch.isfinite(cross).all()):
        raise NonFiniteError("the moments hold NaN or Inf: score again, on data that the model can take")
    scale = float(inner.diagonal().mean()) if len(inner) else 0.0
    if scale <= 0:
        return torch.zeros_like(cross), 0.0
    added = max(ridge, torch.finfo(torch.float64).eps) * scale
    while True:
        raised = inner.clone()
        raised.diagonal().add_(added)
        factor, failed = torch.linalg.cholesky_ex(raised)
        del raised
        if not bool(failed):
            return torch.cholesky_solve(cross.T, factor).T, added
        added *= 10
