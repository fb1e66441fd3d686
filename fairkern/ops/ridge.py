"""Ridge regression from second moments: one linear system, solved by Cholesky in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.errors import NonFiniteError


def solve(inner: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """`cross @ (inner + ridge)⁻¹` by Cholesky, `ridge` in means of the diagonal; zero where that is zero.

    Raises NonFiniteError where either holds NaN or Inf.
    """
    if not bool(torch.isfinite(inner).all() and torch.isfinite(cross).all()):
        raise NonFiniteError("the moments hold NaN or Inf: score again, on data that the model can take")
    scale = float(inner.diagonal().mean()) if len(inner) else 0.0
    if scale <= 0:
        return torch.zeros_like(cross)
    added = max(ridge, torch.finfo(torch.float64).eps) * scale
    while True:
        factor, failed = torch.linalg.cholesky_ex(inner + added * torch.eye(len(inner), dtype=torch.float64))
        if not bool(failed):
            return torch.cholesky_solve(cross.T, factor).T
        added *= 10
