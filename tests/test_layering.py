"""The house keeps its floors: imports point down, and each forbidden thing is in the one file that may have it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fairkern"

FLOORS = (
    {
        "types",
        "errors",
        "env",
        "nested",
        "untouched",
        "deadline",
        "experts",
        "entries",
        "recurrent",
        "weight_calls",
        "size_calls",
        "replacements",
        "_native",
        "_cuda",
    },
    {"ops"},
    {"artefacts"},
    {"axes", "capture", "allocate", "compact", "report"},
    {"api", "proof", "pruning", "timing", ""},  # "" is fairkern/__init__.py: what users import
    {"demo"},
    {"cli"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = set(FLOOR)
EXTENSIONS = {
    "fairkern.ops._extension_cpu": "fairkern.ops._native",
    "fairkern.ops._extension_cuda": "fairkern.ops._cuda",
    # names that they had once, and that nobody else may take
    "fairkern._native": "fairkern.ops._native",
    "fairkern._cuda": "fairkern.ops._cuda",
}
USES_OPS = {"ops", "capture", "compact", "api", ""}
USES_TOD_CURVE = {"allocate", "report"}  # arrays in, an array out


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`fairkern.axes.rules.views` → `axes`; the package itself → ``."""
    return module.partition(".")[2].partition(".")[0]


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, str | None]]:
    """(line, absolute module, imported name or None) of every import, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                up = here[: len(here) - node.level + (1 if is_package else 0)]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                if base == "fairkern" and alias.name in ROOMS:  # `from fairkern import ops`
                    yield node.lineno, f"fairkern.{alias.name}", None
                else:
                    yield node.lineno, base, alias.name


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Every broken rule of one file, as `line: what`."""
    tree = ast.parse(source)
    mine = room(module)
    found: list[str] = []
    if mine not in FLOOR:
        found.append(f"1: fairkern.{mine} has no floor; say in FLOORS where it belongs")
        return found
    for line, target, name in imports(tree, module, is_package):
        full = f"{target}.{name}" if name else target
        top = target.partition(".")[0]
        if top == "fairkern":
            found += [f"{line}: {problem}" for problem in _inside(module, mine, target, name)]
        if top == "triton" and not _may_import_triton(module):
            found.append(f"{line}: triton is imported outside ops/_triton.py and triton_kernel.py files")
        if (full == "torch.nn" or full.startswith("torch.nn.")) and mine == "allocate":
            found.append(f"{line}: allocate imports torch.nn")
        if full in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and mine != "env":
            found.append(f"{line}: {full} outside env.py")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and mine != "env":
                found.append(f"{node.lineno}: {name} outside env.py")
            if name == "torch.nn" and mine == "allocate":
                found.append(f"{node.lineno}: allocate uses torch.nn")
            if mine in {"demo", "cli"} and name.startswith(("fk._", "fairkern._")):
                found.append(f"{node.lineno}: {name} is not public")
    return sorted(set(found), key=lambda text: (int(text.partition(":")[0]), text))


def _inside(module: str, mine: str, target: str, name: str | None) -> Iterator[str]:
    """Problems of one import of fairkern by fairkern."""
    theirs = room(target)
    full = f"{target}.{name}" if name else target
    if theirs not in FLOOR:
        yield f"imports {full}, which has no floor"
        return
    for extension, importer in EXTENSIONS.items():
        if full == extension or full.startswith(f"{extension}."):
            if module != importer:
                yield f"the compiled extension is imported outside {importer}"
            return
    if mine in {"demo", "cli"}:
        if theirs not in {"", "demo"} or ((name or "").startswith("_") and theirs == ""):
            yield f"imports {full}; the demo and the command line use the public API only"
        return
    if mine == theirs:
        return
    if FLOOR[theirs] > FLOOR[mine]:
        yield f"imports {full}, a floor above"
    elif FLOOR[theirs] == FLOOR[mine] and FLOOR[mine] not in (0, FLOOR["api"]):
        yield f"imports its sibling {full}"
    if theirs == "ops" and mine not in USES_OPS and not (mine in USES_TOD_CURVE and _is_tod_curve(target, name)):
        yield f"imports {full}; only capture and compact use ops (allocate and report: tod_curve)"


def _is_tod_curve(target: str, name: str | None) -> bool:
    return name in {"tod_curve", "tod_curves"} and target in {"fairkern.ops", "fairkern.ops.tod"}


def _may_import_triton(module: str) -> bool:
    return module == "fairkern.ops._triton" or (
        module.startswith("fairkern.ops.") and module.rpartition(".")[2] == "triton_kernel"
    )


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_floors(path: Path) -> None:
    assert violations(path.read_text(), module_name(path), path.name == "__init__.py") == []


def test_every_package_is_walked() -> None:
    walked = {room(module_name(path)) for path in FILES}
    assert {"", "ops", "artefacts", "axes", "capture", "allocate", "compact", "report", "demo", "cli"} <= walked


BAD = [
    ("import fairkern.api", "fairkern.axes.trace", "a floor above"),
    ("import fairkern as fk", "fairkern.compact.apply", "a floor above"),
    ("from fairkern import api", "fairkern.ops.gather", "a floor above"),
    ("from ..capture import hooks", "fairkern.axes.units", "sibling"),
    ("from .. import capture", "fairkern.axes.units", "sibling"),
    ("def f():\n    from fairkern.report import table", "fairkern.allocate.tod", "sibling"),
    ("from fairkern.ops import gather", "fairkern.report.tables", "only capture and compact"),
    ("from fairkern.ops import gather", "fairkern.allocate.tod", "only capture and compact"),
    ("from fairkern import ops", "fairkern.axes.trace", "only capture and compact"),
    ("from fairkern.axes import trace", "fairkern.ops.gather", "a floor above"),
    ("from fairkern.types import Plan", "fairkern.demo.run", "public API only"),
    ("from fairkern.api import prune", "fairkern.cli", "public API only"),
    ("from fairkern import _native", "fairkern.cli", "compiled extension"),
    ("import fairkern as fk\nfk._secret()", "fairkern.demo.run", "not public"),
    ("import fairkern._native", "fairkern.ops.gather.native", "compiled extension"),
    ("from fairkern.ops import _extension_cpu", "fairkern.cli", "compiled extension"),
    ("from fairkern.ops import _extension_cpu", "fairkern.ops._cuda", "compiled extension"),
    ("from fairkern.ops import _extension_cuda", "fairkern.ops._native", "compiled extension"),
    ("import fairkern.ops._extension_cpu", "fairkern.ops.gather.native", "compiled extension"),
    ("from fairkern.ops._extension_cuda import gather", "fairkern.ops.gather.cuda", "compiled extension"),
    ("from . import _extension_cpu", "fairkern.ops._registry", "compiled extension"),
    ("import triton.language as tl", "fairkern.ops.gather", "triton"),
    ("import triton", "fairkern.capture.triton_kernel", "triton"),
    ("import os\nos.environ['A']", "fairkern.api", "outside env.py"),
    ("from os import getenv", "fairkern.ops._native", "outside env.py"),
    ("import torch\nx = torch.nn.Linear", "fairkern.allocate.cost", "torch.nn"),
    ("from torch import nn", "fairkern.allocate.cost", "torch.nn"),
    ("from torch.nn import functional", "fairkern.allocate.cost", "torch.nn"),
    ("try:\n    pass\nexcept:\n    pass", "fairkern.api", "bare except"),
    ("", "fairkern.attic", "no floor"),
]


@pytest.mark.parametrize(("source", "module", "what"), BAD)
def test_the_checker_sees(source: str, module: str, what: str) -> None:
    assert any(what in problem for problem in violations(source, module))


GOOD = [
    ("from fairkern.ops import tod_curve", "fairkern.report.pictures"),
    ("from fairkern.ops import tod_curves", "fairkern.allocate.tod"),
    ("from fairkern.ops import class_wasserstein\nfrom fairkern.types import AxisGroup", "fairkern.capture.run"),
    ("from .reference import gather\nfrom fairkern.errors import InputError", "fairkern.ops.gather.native"),
    ("import fairkern as fk\nfrom fairkern.demo.data import digits\nfk.score", "fairkern.demo.run"),
    ("import triton", "fairkern.ops.gather.triton_kernel"),
    ("from fairkern import _native", "fairkern.ops._native"),
    ("from fairkern.ops import _extension_cpu", "fairkern.ops._native"),
    ("from fairkern.ops import _extension_cuda", "fairkern.ops._cuda"),
    ("import os\nos.environ", "fairkern.env"),
]


@pytest.mark.parametrize(("source", "module"), GOOD)
def test_the_checker_lets_pass(source: str, module: str) -> None:
    assert violations(source, module) == []


def test_import_is_light() -> None:
    """Importing fairkern starts no GPU context and loads none of the packages that only some commands need."""
    script = (
        "import sys, fairkern, fairkern.cli, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = {'matplotlib', 'sklearn', 'transformers', 'torchvision', 'pytest'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
