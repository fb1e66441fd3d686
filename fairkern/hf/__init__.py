"""Folders of transformers: in, pruned, out."""

from fairkern.hf.file_names import name_files
from fairkern.hf.gguf import export_gguf
from fairkern.hf.output import save
from fairkern.hf.run import prune
from fairkern.hf.uneven import save_uneven

__all__ = ["export_gguf", "name_files", "prune", "save", "save_uneven"]
