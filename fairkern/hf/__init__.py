"""Folders of transformers: in, pruned, out."""

from fairkern.hf.output import save
from fairkern.hf.run import prune

__all__ = ["prune", "save"]
