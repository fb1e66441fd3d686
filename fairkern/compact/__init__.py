"""Plan → small model: check, mask, cut, prove, save and load."""

from fairkern.compact.apply import apply
from fairkern.compact.checkpoint import load_pruned, save_pruned
from fairkern.compact.descriptors import check
from fairkern.compact.inputs import vary
from fairkern.compact.masked import masked
from fairkern.compact.prove import difference, prove

__all__ = ["apply", "check", "difference", "load_pruned", "masked", "prove", "save_pruned", "vary"]
