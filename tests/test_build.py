"""FAIRKERN_BUILD names what setup.py does, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def setup_py(build: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "--quiet", "--version"]
    environment = {**os.environ, "FAIRKERN_BUILD": build}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("build", ["auto", "cpu", "none"])
def test_known_choices(build):
    done = setup_py(build)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0.1.0"


@pytest.mark.parametrize(("build", "message"), [("cuda", "no CUDA extension"), ("fast", "expected one of")])
def test_other_choices_are_errors(build, message):
    done = setup_py(build)
    assert done.returncode != 0
    assert message in done.stderr
