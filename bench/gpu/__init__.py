"""What `pytest -m gpu` measures on a GPU, after the tests: `bench/test_gpu.py` runs it."""
