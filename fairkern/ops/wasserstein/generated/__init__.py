"""Straight-line kernels, written by `python -m fairkern.ops.wasserstein.generated`."""
