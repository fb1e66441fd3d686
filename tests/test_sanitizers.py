"""The operator tests on a native extension built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
TESTS = [
    "class_wasserstein",
    "wasserstein_1d",
    "sliced",
    "project",
    "taylor",
    "tod",
    "gather",
    "gather_plan",
    "eliminate",
]


def library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    path = Path(found.strip())
    if not path.is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return str(path)


@pytest.mark.slow
def test_operators_under_sanitizers(tmp_path):
    pybind11 = pytest.importorskip("pybind11")
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs Linux and g++")
    preload = f"{library('libasan.so')} {library('libstdc++.so.6')}"
    package = tmp_path / "fairkern"
    shutil.copytree(ROOT / "fairkern", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    sources = ["csrc/bindings.cpp", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cpu").glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", *SANITIZE]
    includes = ["-Icsrc", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    compiling = [
        (subprocess.Popen(["g++", *flags, *includes, "-c", s, "-o", str(tmp_path / f"{i}.o")], cwd=ROOT), s)
        for i, s in enumerate(sources)
    ]
    for process, source in compiling:
        assert process.wait() == 0, source
    objects = [str(tmp_path / f"{i}.o") for i in range(len(sources))]
    target = package / "ops" / f"_extension_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", "-fopenmp", *SANITIZE, *objects, "-o", str(target)], check=True)

    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    where = "import fairkern.ops._extension_cpu as n; print(n.__file__)"
    command = [sys.executable, "-c", where]
    seen = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert seen.stdout.strip() == str(target), seen.stderr
    chosen = [f"tests/ops/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not large"]
    command += chosen
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
