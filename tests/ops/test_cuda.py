"""The CUDA extension on machines without a GPU: it compiles, imports, and says why it cannot run."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fairkern import ops
from fairkern.errors import BackendError
from fairkern.ops import _cuda

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ["sm_80", "sm_90", "sm_100", "sm_120"]


def compiler() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        pytest.skip("nvcc was not found")
    return found


@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=() if a == "sm_90" else pytest.mark.slow) for a in ARCHITECTURES]
)
def test_compiles_with_few_registers(architecture, tmp_path):
    nvcc = compiler()
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    command = [nvcc, "-std=c++17", "-O3", "-Icsrc", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += ["-c", "csrc/cuda/gather.cu", "-o", str(tmp_path / "gather.o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used = [int(word) for before, word in _pairs(done.stdout + done.stderr) if before == "Used"]
    assert used
    assert max(used) <= 64  # four blocks of 256 threads to a multiprocessor


def _pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(itertools.pairwise(words))


def test_other_devices_are_refused():
    with pytest.raises(BackendError, match="CUDA tensors"):
        ops.gather(torch.arange(3), {}, backend="cuda")
    assert "CUDA tensors" in ops.backends("cpu")["gather"]["cuda"]


def test_imports_without_a_driver_and_says_why_it_cannot_run():
    built = _cuda.built()
    if built["path"] is None:
        pytest.skip(str(built["unavailable"]))
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert built["architectures"]
    module = _cuda.extension()
    assert "cuda" in module.why_no_device(0)
    with pytest.raises(RuntimeError, match="cuda"):
        module.gather(tasks=16, jobs=1, blocks=1, device=0, stream=0)
    with pytest.raises(ValueError, match="null pointer"):
        module.gather(tasks=0, jobs=1, blocks=1, device=0, stream=0)
    assert "cuda" in ops.backends("cuda")["gather"]["cuda"]
