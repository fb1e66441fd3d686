"""Cut, and fold what went into what stays: corrections, their fit, the refit of one layer after the other and of all
together."""

from __future__ import annotations

from fairkern.compensate.correction import Correction, fold, through_zero, unexplained
from fairkern.compensate.divergence import Loss
from fairkern.compensate.fit import Compensation
from fairkern.compensate.one_shot import corrections

__all__ = ["Compensation", "Correction", "Loss", "corrections", "fold", "through_zero", "unexplained"]
