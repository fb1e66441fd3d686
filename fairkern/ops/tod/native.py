"""Calls the compiled curves: allocates the result, passes addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairkern.ops import _native


def tod_curves(u: Tensor, r: Tensor, sizes: Sequence[int]) -> Tensor:
    """[total], [total], without NaN → float64 [total]: the curve of each group, group after group."""
    u, r = u.to(torch.float64).contiguous(), r.to(torch.float64).contiguous()
    counts = torch.tensor(list(sizes), dtype=torch.int64, device="cpu")
    out = torch.empty(len(u), dtype=torch.float64, device="cpu")
    _native.extension().tod_curves(
        u=_native.address("u", u, torch.float64),
        r=_native.address("r", r, torch.float64),
        sizes=_native.address("sizes", counts, torch.int64),
        groups=len(counts),
        out=_native.address("out", out, torch.float64),
        threads=torch.get_num_threads(),
    )
    return out
