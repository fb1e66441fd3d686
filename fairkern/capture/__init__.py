"""A model and data → class samples, Taylor sums, means, second moments and what follows from them, in one pass."""

from fairkern.capture.among import check_holders, check_same
from fairkern.capture.batches import labelled
from fairkern.capture.run import capture
from fairkern.capture.running_statistics import recalibrate
from fairkern.capture.settings import LossReduction, Pairs, Recipe, Reduction, Settings

__all__ = [
    "LossReduction",
    "Pairs",
    "Recipe",
    "Reduction",
    "Settings",
    "capture",
    "check_holders",
    "check_same",
    "labelled",
    "recalibrate",
]
