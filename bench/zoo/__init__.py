"""Whole model families, traced, cut and compared: `python -m bench.zoo` writes docs/zoo.md."""
