"""Plan → small model: check, mask, cut, prove."""

from fairkern.compact.apply import apply
from fairkern.compact.descriptors import check
from fairkern.compact.inputs import vary
from fairkern.compact.masked import masked
from fairkern.compact.prove import difference, prove

__all__ = ["apply", "check", "difference", "masked", "prove", "vary"]
