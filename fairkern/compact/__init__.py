"""Plan → small model: check, mask, cut, save and load."""

from fairkern.compact.applying import apply
from fairkern.compact.builds import found_build, given_build
from fairkern.compact.by_itself import load_by_itself
from fairkern.compact.checkpoint import load_pruned, save_pruned
from fairkern.compact.descriptors import check, shapes_after
from fairkern.compact.mask import masked
from fairkern.compact.sharded import whole_on_meta
from fairkern.compact.streaming import Compacted, compact_checkpoint

__all__ = [
    "Compacted",
    "apply",
    "check",
    "compact_checkpoint",
    "found_build",
    "given_build",
    "load_by_itself",
    "load_pruned",
    "masked",
    "save_pruned",
    "shapes_after",
    "whole_on_meta",
]
