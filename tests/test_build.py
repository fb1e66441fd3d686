"""FAIRKERN_BUILD names what setup.py does, and nothing else."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def setup_py(build: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("setuptools", "77", reason="pip builds with a newer one of its own")
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


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("", ([(80, 90), (100, 120)], True)), ("90", ([(90,)], False)), ("90;89", ([(89,), (90,)], False)), ("sm", None)],
)
def test_architectures_that_are_asked_for_are_built_alone(asked: str, expected: object) -> None:
    assert architectures(asked, {80, 89, 90, 100, 120}) == expected


def test_an_architecture_that_the_compiler_does_not_know_is_an_error() -> None:
    assert architectures("90", {80}) is None
    assert architectures("", {80, 100}) == ([(80,), (100,)], True)


def architectures(asked: str, known: set[int]) -> object:
    """What `setup.py` would build, without building; None where it refuses."""
    pytest.importorskip("pybind11")
    script = (
        "import runpy, sys, setuptools\n"
        "setuptools.setup = lambda **_: None\n"
        "sys.argv = ['setup.py', '--version']\n"
        f"print(runpy.run_path('setup.py')['architectures']({known!r}))"
    )
    seen = {**os.environ, "FAIRKERN_BUILD": "none", "FAIRKERN_CUDA_ARCHITECTURES": asked}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=seen, capture_output=True, text=True, check=False)
    if done.returncode:
        assert "FAIRKERN_CUDA_ARCHITECTURES" in done.stderr, done.stderr
        return None
    return ast.literal_eval(done.stdout)


def test_wheels_are_built_for_every_python_that_is_named() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (row,) = re.findall(r"^\[tool\.cibuildwheel\]\nbuild = \[(.*)\]$", text, re.MULTILINE)
    built = [f"{major}.{minor}" for major, minor in re.findall(r"cp(3)(\d+)-\*", row)]
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    (oldest,) = re.findall(r'requires-python = ">=(3\.\d+)"', text)
    assert built == named
    assert built[0] == oldest


def test_files_of_the_package_that_are_no_modules_are_shipped() -> None:
    """Such as the table of launch settings, which is read on a GPU alone."""
    (row,) = re.findall(
        r'^\[tool\.setuptools\.package-data\]\n"\*" = \[(.*)\]$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    shipped = re.findall(r'"([^"]+)"', row)
    built = {".pyc", ".so"}
    others = [
        path for path in (ROOT / "fairkern").rglob("*.*") if path.suffix not in {".py", *built} and path.is_file()
    ]
    assert [str(path) for path in others if not any(path.match(pattern) for pattern in shipped)] == []
    assert ROOT / "fairkern" / "ops" / "tuned.json" in others


def test_a_release_is_tested_as_the_wheel_that_is_built_here() -> None:
    ci = ROOT / ".ci"
    if not ci.exists():
        pytest.skip("not a checkout")
    text = (ROOT / "pyproject.toml").read_text()
    (block,) = re.findall(r"^test-command = \[\n(.*?)\n\]", text, re.MULTILINE | re.DOTALL)
    commands = re.findall(r'"(.+)"', block)
    script = (ci / "wheel").read_text()
    for command in commands:
        assert command.replace("{project}/", '"$root/').replace(".py native", '.py" native') in script, command
    assert '"$root/.ci/wheel"' in (ci / "run").read_text()
