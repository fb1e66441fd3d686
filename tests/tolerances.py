"""What a backend may differ from the float64 reference by: relative to the size of the result, per input dtype.

The inputs are rounded to the dtype before both, so these bound the arithmetic alone, which is float32 for half
precision.
"""

from __future__ import annotations

import torch

RELATIVE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """`actual` is within the tolerance for `dtype` of the float64 `expected`; NaN and Inf where that has them.

    `scale` is the size of what was summed, where cancellation makes the result smaller than that.
    """
    torch.testing.assert_close(
        actual.to(torch.float64),
        expected.to(torch.float64),
        rtol=RELATIVE[dtype],
        atol=RELATIVE[dtype] * scale,
        equal_nan=True,
    )
