"""Benchmarks: each runs the operation and its rival in turn, in one process. `python -m bench` lists them."""
