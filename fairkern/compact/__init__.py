"""Plan → small model: check, mask, cut, prove, save and load."""

from fairkern.compact.apply import apply
from fairkern.compact.checkpoint import load_pruned, save_pruned
from fairkern.compact.compensate import Compensation, Correction, corrections, fold, unexplained
from fairkern.compact.config import undescribed
from fairkern.compact.descriptors import check, shapes_after
from fairkern.compact.inputs import vary
from fairkern.compact.masked import masked
from fairkern.compact.prove import check_values, difference, failure, prove
from fairkern.compact.refit import other_taps, refit

__all__ = [
    "Compensation",
    "Correction",
    "apply",
    "check",
    "check_values",
    "corrections",
    "difference",
    "failure",
    "fold",
    "load_pruned",
    "masked",
    "other_taps",
    "prove",
    "refit",
    "save_pruned",
    "shapes_after",
    "undescribed",
    "unexplained",
    "vary",
]
