"""Backward elimination of small matrices, as a whole in the compiled extension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairkern.errors import NonFiniteError
from fairkern.ops import _native
from fairkern.ops.eliminate import native
from fairkern.ops.eliminate.config import ROUNDING
from fairkern.ties import classes


def runs(rows: Sequence[Tensor]) -> bool:
    """Whether it does: `rows` of the views, units of one position each, on a CPU."""
    return all(r.device.type == "cpu" and r.shape[1] == 1 for r in rows) and _native.unavailable() is None


def eliminate(
    covariances: Sequence[Tensor], outputs: Sequence[Tensor], rows: Sequence[Tensor], most: int
) -> tuple[Tensor, Tensor]:
    """Order of the units, and the squared error that each adds when it goes, as `blocked.eliminate` has them.

    All are contiguous; of the matrices, float64, the lower halves count, and they are lost. Raises NonFiniteError where
    a covariance is not definite, or by less than rounding.
    """
    views = [native.Small(c, h, r) for c, h, r in zip(covariances, outputs, rows, strict=True)]
    order, added, off, failed = native.whole(views, most, ROUNDING)
    if failed is not None:
        raise NonFiniteError(f"covariance {failed} is not positive definite; add a ridge to its diagonal")
    if not bool(torch.isfinite(added[:most]).all()):
        raise NonFiniteError("the covariances are definite by less than rounding; add a ridge to their diagonals")
    if most < len(order):
        ranked = classes(added[most:].numpy(), off.numpy())
        last = most + torch.from_numpy(np.argsort(ranked, kind="stable"))
        order, added = (torch.cat([found[:most], found[last]]) for found in (order, added))
    return order, added
