"""A model and data → class samples, Taylor sums and means, in one pass."""

from fairkern.capture.batches import labelled
from fairkern.capture.joint import joint_moments, reading_points
from fairkern.capture.recalibrate import recalibrate
from fairkern.capture.run import capture
from fairkern.capture.settings import LossReduction, Pairs, Recipe, Reduction, Settings, choose

__all__ = [
    "LossReduction",
    "Pairs",
    "Recipe",
    "Reduction",
    "Settings",
    "capture",
    "choose",
    "joint_moments",
    "labelled",
    "reading_points",
    "recalibrate",
]
