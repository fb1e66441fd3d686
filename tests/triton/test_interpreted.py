"""Every Triton kernel, run by Triton's interpreter on the CPU: the tables of `tests/ops` and `test_kernels.py`.

In a process of its own, because Triton decides when a kernel is defined whether it is interpreted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests import interpreter

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
    interpreter.required()
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


@pytest.mark.parametrize(
    ("triton", "numpy", "excused"),
    [
        ("3.5.0", "2.4.0", True),
        ("3.6.0", "2.4.6", True),
        ("3.6.0", "2.3.5", False),
        ("3.8.0", "2.4.6", False),
        ("3.10.1+git1", "2.5.0rc1", False),
    ],
)
def test_versions_that_cannot_work_together(triton: str, numpy: str, excused: bool) -> None:
    assert interpreter.excused(triton, numpy) is excused


def test_kernels_that_cannot_be_interpreted_fail_where_they_have_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reason either way; the skip is for versions that are known, and for nothing in CI."""
    said: list[str] = []

    def outcome(triton: str, ci: str = "") -> str:
        monkeypatch.setenv("CI", ci)
        monkeypatch.setattr(interpreter.metadata, "version", {"triton": triton, "numpy": "2.4.6"}.get)
        try:
            interpreter.required()
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            said.append(str(error))
            return "skipped" if isinstance(error, pytest.skip.Exception) else "failed"
        return "ran"

    monkeypatch.setattr(interpreter, "broken", lambda: "why")
    assert outcome("3.6.0") == "skipped"
    assert outcome("3.6.0", ci="true") == "failed"
    assert outcome("3.8.0") == "failed"
    assert said[0] == "Triton's interpreter runs no kernel here, triton 3.6.0 with numpy 2.4.6: why"
    monkeypatch.setattr(interpreter, "broken", lambda: None)
    assert outcome("3.6.0", ci="true") == "ran"


@pytest.mark.parametrize(
    ("script", "reason"), [("raise ValueError('no such thing')", "ValueError: no such thing"), ("pass", None)]
)
def test_the_reason_is_what_the_kernel_said(script: str, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    monkeypatch.setattr(interpreter.subprocess, "run", lambda command, **how: run([command[0], "-c", script], **how))
    assert interpreter.broken.__wrapped__() == reason
