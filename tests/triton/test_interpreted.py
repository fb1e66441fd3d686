"""Every Triton kernel, run by Triton's interpreter on the CPU: the tables of `tests/ops` and `test_kernels.py`.

In a process of its own, because Triton decides when a kernel is defined whether it is interpreted.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
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
TABLES = "tests/ops"  # a folder: those of its files that are not named beside it
# In parts of some seconds each: how many tests pass in a part at least, and what `-k` says of all but the last, which
# has what is left.
PARTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "tests/triton/test_kernels.py": (10, ("wasserstein_on_triton and not max", "wasserstein_on_triton")),
    "tests/ops/test_taylor.py": (15, ("running_sums and not bfloat16", "bfloat16")),
    "tests/ops/test_class_wasserstein.py": (5, ("equals_scipy and projections", "equals_scipy")),
    "tests/ops/test_sliced.py": (20, ("float32",)),
    "tests/ops/test_gather.py": (180, ()),
    TABLES: (50, ()),
}


def shares(words: Sequence[str]) -> list[str]:
    """What `-k` says of each part, so that every test is in one: what a word says and none before it, then none."""
    without = [" and ".join(["triton", *(f"not ({word})" for word in words[:i])]) for i in range(len(words) + 1)]
    return [*(f"{before} and ({word})" for before, word in zip(without, words, strict=False)), without[-1]]


def test_every_test_is_in_one_part() -> None:
    """Whatever it is called."""
    words = ("a and not b", "a", "b")
    for a, b, triton in itertools.product((False, True), repeat=3):
        assert sum(eval(chosen, {"a": a, "b": b, "triton": triton}) for chosen in shares(words)) == triton


def run(paths: Sequence[str], marked: str, chosen: str, at_least: int) -> None:
    interpreter.required()
    chosen = f"{chosen} and not (" + ") and not (".join(TOO_SLOW) + ")"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-m", f"{marked} and not zoo and not large", "-k", chosen, "--durations=15", *paths]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= at_least, done.stdout
    print(done.stdout)  # noqa: T201  (shown by -s: which are slow)


@pytest.mark.parametrize(
    ("path", "chosen", "at_least"),
    [
        pytest.param(path, chosen, least, id=f"{path}, part {i}")
        for path, (least, words) in PARTS.items()
        for i, chosen in enumerate(shares(words))
    ],
)
def test_every_kernel_equals_the_reference(path: str, chosen: str, at_least: int) -> None:
    others = [f"--ignore={other}" for other in PARTS if other != path] if path == TABLES else []
    run([path, *others], "not slow", chosen, at_least)


@pytest.mark.slow
def test_every_kernel_equals_the_reference_of_a_hundred_thousand_samples() -> None:
    run([TABLES, "tests/triton/test_kernels.py"], "slow", "triton", 1)


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
