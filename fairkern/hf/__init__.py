"""Folders of transformers: in, pruned, out."""
