"""Whether Triton's interpreter can run kernels here, found out by one that loops to an argument, adds and stores.

Triton before 3.8 asks numpy for the number in an array of one place, which numpy from 2.4 on refuses: no such loop can
be interpreted there. That is nothing of ours, and tests in the interpreter are skipped with what it said. Any other
pair of versions has to run: there the same words are a failure, as they are wherever `CI` is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CANNOT = ((3, 8), (2, 4))  # Triton before, with numpy from


@lru_cache(maxsize=1)
def broken() -> str | None:
    """None where the kernel below gives what it should, else the last line of what went wrong; in its own process,
    because Triton decides when a kernel is defined whether it is interpreted."""
    command = [sys.executable, "-m", "tests.interpreter"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"the kernel's process ended with {done.returncode}"


def excused(triton: str, numpy: str) -> bool:
    """Whether these versions are known not to work together."""
    return _numbers(triton) < CANNOT[0] and _numbers(numpy) >= CANNOT[1]


def required() -> None:
    """Skips a test of interpreted kernels where these are known not to run, and fails it where they have to."""
    if (reason := broken()) is None:
        return
    found = {name: metadata.version(name) for name in ("triton", "numpy")}
    together = " with ".join(f"{name} {version}" for name, version in found.items())
    message = f"Triton's interpreter runs no kernel here, {together}: {reason}"
    if excused(**found) and not os.environ.get("CI"):
        pytest.skip(message)
    pytest.fail(message, pytrace=False)


def _numbers(version: str) -> tuple[int, int]:
    first, second = version.split(".")[:2]
    return int(first), int(second)


def _check() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def sums_kernel(x, out, rows, SIZE: tl.constexpr):
        total = tl.zeros([SIZE], tl.float32)
        for row in range(rows):
            total += tl.load(x + row * SIZE + tl.arange(0, SIZE))
        tl.store(out + tl.arange(0, SIZE), total)

    x, out = torch.arange(12, dtype=torch.float32).view(3, 4), torch.empty(4)
    sums_kernel[(1,)](x, out, 3, SIZE=4)
    assert torch.equal(out, x.sum(0)), f"the kernel gives {out.tolist()}, expected {x.sum(0).tolist()}"


if __name__ == "__main__":
    _check()
