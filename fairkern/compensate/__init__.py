"""Cut, and fold what went into what stays: corrections, their fit, and the refit of one layer after the other."""

from __future__ import annotations

from fairkern.compensate.mixing import Compensation
from fairkern.compensate.one_shot import Correction, corrections, fold, unexplained

__all__ = ["Compensation", "Correction", "corrections", "fold", "unexplained"]
