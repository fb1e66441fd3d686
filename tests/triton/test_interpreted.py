"""Every Triton kernel, run by Triton's interpreter on the CPU: the tables of `tests/ops` and `test_kernels.py`.

In a process of its own, because Triton decides when a kernel is defined whether it is interpreted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parent.parent.parent
TOO_SLOW = (
    "torch.float16 and equals",
    "bfloat16 and equals_scipy and not odd",
    "strides_do_not_matter and many",
    "every_value",
    "beyond_the_sorting_network",
    "more_classes",
)
AT_LEAST = 250


@pytest.mark.parametrize(
    ("marked", "at_least"),
    [
        pytest.param("not slow", AT_LEAST, id="tables"),
        pytest.param("slow", 1, id="a hundred thousand samples", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_equals_the_reference(marked: str, at_least: int) -> None:
    chosen = "triton and not (" + ") and not (".join(TOO_SLOW) + ")"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += [
        "-m",
        f"{marked} and not zoo and not large",
        "-k",
        chosen,
        "--durations=15",
        "tests/ops",
        "tests/triton/test_kernels.py",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= at_least, done.stdout
    print(done.stdout)  # noqa: T201  (shown by -s: which are slow)
