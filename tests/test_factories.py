"""A default device or dtype is the user's: whoever makes a tensor here says where it lies and of what type."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "fairkern").rglob("*.py"))

# What a default device is put into; torch knows no such list of Generator, of normal and of the legacy constructors.
FACTORIES = {made.__name__ for made in _device_constructors()} | {"Generator", "normal"}
LEGACY = {"Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor", "ByteTensor"}
# Those whose type is the default one, or (the last four) may be: that of numbers with a point in them.
TYPED = {"empty", "empty_strided", "empty_permuted", "ones", "zeros", "full", "eye", "rand", "randn", "normal"}
TYPED |= {"linspace", "logspace", "tensor", "as_tensor", "asarray", "scalar_tensor"}
# Layers hold tensors that they make themselves.
LAYERS = {
    name
    for name, kind in vars(torch.nn).items()
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and "device" in inspect.signature(kind).parameters
}
MEANT = {"fairkern/demo/models.py": "networks as a user builds them"}


def unnamed(source: str) -> list[str]:
    """Every call of a factory that leaves device or dtype to the defaults, as `line: what`."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            taken = {alias.name for alias in node.names} & (FACTORIES | LEGACY - {"Tensor"})
            found += [f"{node.lineno}: {name} is imported by itself" for name in sorted(taken)]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        given = {keyword.arg for keyword in node.keywords}
        if called == "Tensor" or (owner == "torch" and name in LEGACY):
            found.append(f"{node.lineno}: {called} takes the defaults")
        elif (owner in {"torch", "torch.nested", "torch.fft"} and name in FACTORIES) or (
            owner in {"nn", "torch.nn"} and name in LAYERS
        ):
            named = {"device"} if owner.startswith("torch") and name not in TYPED else {"device", "dtype"}
            if name == "Generator" and node.args:
                named.remove("device")
            found += [f"{node.lineno}: {called} without {what}=" for what in sorted(named - given)]
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(ROOT).as_posix() not in MEANT],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_device_and_dtype_are_named(path: Path) -> None:
    assert unnamed(path.read_text()) == []


def test_the_walk_finds_them() -> None:
    source = """
import torch
from torch import zeros, nn
a = torch.zeros(3)
b = torch.zeros(3, dtype=torch.float64)
c = torch.arange(3)
d = torch.Generator()
e = nn.Linear(3, 4, device="cpu")
f = torch.FloatTensor([1.0])
"""
    assert unnamed(source) == [
        "3: zeros is imported by itself",
        "4: torch.zeros without device=",
        "4: torch.zeros without dtype=",
        "5: torch.zeros without device=",
        "6: torch.arange without device=",
        "7: torch.Generator without device=",
        "8: nn.Linear without dtype=",
        "9: torch.FloatTensor takes the defaults",
    ]
    good = """
a = torch.zeros_like(x)
b = torch.arange(3, device="cpu")
c = torch.empty(3, dtype=x.dtype, device=x.device)
d = torch.Generator("cuda"), torch.from_numpy(y), x.new_zeros(3), nn.ReLU()
"""
    assert unnamed(good) == []
