"""Names of the arrays that pass between the stages."""

from __future__ import annotations

import numpy as np

IndexArray = np.ndarray  # int64
FloatArray = np.ndarray  # float64 unless said otherwise
