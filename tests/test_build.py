"""FAIRKERN_BUILD names what setup.py does, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def setup_py(build: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "--quiet", "--version"]
    seen = {**os.environ, "FAIRKERN_BUILD": build, **environment}
    return subprocess.run(command, cwd=ROOT, env=seen, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("build", ["auto", "cpu", "none"])
def test_known_choices(build):
    done = setup_py(build)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "0.1.0"


def test_other_choices_are_errors():
    done = setup_py("fast")
    assert done.returncode != 0
    assert "expected one of" in done.stderr


def test_cuda_without_nvcc_is_an_error(tmp_path):
    done = setup_py("cuda", PATH=str(tmp_path), CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "nvcc was not found" in done.stderr
