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
    {"types", "errors", "env", "deadline", "options", "ties", "interrupts", "surroundings", "ranks", "version"}
    | {"_native", "_cuda"},
    {"model", "plans", "ops"},  # what is known of models; plans as data; tensors in, tensors out
    {"artefacts"},
    {"axes", "capture", "allocate", "compact", "report"},  # the stages
    {"prove", "compensate"},  # what is made of two stages
    {"walk"},  # a model that is not there as a whole, through several of them
    {"api", "checks", "results", "pruning", "saving", "summary", "sweeping", "timing", "healing", "evaluating"},
    {"hf", "integrations"},  # folders of transformers; other people's tools
    {"public"},
    {""},  # fairkern/__init__.py: what users import
    {"demo"},
    {"cli"},
    {"__main__"},
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
USES_OPS = {"ops", "capture", "compact", "compensate", "api", "public", ""}
NO_MODELS = {"allocate", "plans"}
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
        if (full == "torch.nn" or full.startswith("torch.nn.")) and mine in NO_MODELS:
            found.append(f"{line}: {mine} imports torch.nn")
        if full in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and mine != "env":
            found.append(f"{line}: {full} outside env.py")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in {"os.environ", "os.getenv", "os.environb", "os.putenv"} and mine != "env":
                found.append(f"{node.lineno}: {name} outside env.py")
            if name == "torch.nn" and mine in NO_MODELS:
                found.append(f"{node.lineno}: {mine} uses torch.nn")
            private = name.startswith(("fk._", "fairkern._")) and not name.endswith("__")
            if mine in {"demo", "cli"} and private:
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
        if theirs not in {"", "demo", mine} or ((name or "").startswith("_") and theirs == ""):
            yield f"imports {full}; the demo and the command line use the public API only"
        return
    if mine == theirs:
        return
    if FLOOR[theirs] > FLOOR[mine]:
        yield f"imports {full}, a floor above"
    elif FLOOR[theirs] == FLOOR[mine] and FLOOR[mine] not in (0, FLOOR["api"]):  # these must not go in circles
        yield f"imports its sibling {full}"
    if theirs == "ops" and mine not in USES_OPS and not (mine in USES_TOD_CURVE and _is_tod_curve(target, name)):
        yield f"imports {full}; only capture and compact, and compensate above them, use ops (others: tod_curve)"


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
    assert {"types", "model", "plans", "prove", "compensate", "results"} <= walked


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, straight or by way of others: what is left once nothing else can be taken off."""
    left = {module: set(found) & edges.keys() - {module} for module, found in edges.items()}
    while True:
        done = {m for m, found in left.items() if not found} | (left.keys() - set().union(*left.values(), ()))
        if not done:
            return [sorted(left)] if left else []
        left = {m: found - done for m, found in left.items() if m not in done}


def test_no_two_modules_import_each_other() -> None:
    """Imports inside functions and under TYPE_CHECKING count."""
    modules = {module_name(path) for path in FILES} | EXTENSIONS.keys()
    edges: dict[str, set[str]] = {}
    for path in FILES:
        module = module_name(path)
        found = {
            f"{target}.{name}" if name and f"{target}.{name}" in modules else target
            for _, target, name in imports(ast.parse(path.read_text()), module, path.name == "__init__.py")
        }
        edges[module] = found & modules
    assert circles(edges) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


# Files that may be longer, and why.
LONG = {
    "fairkern/ops/wasserstein/generated/triton_kernel.py": "written by a generator: sorting networks, unrolled",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_subject(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in LONG:
        assert len(path.read_text().splitlines()) <= 400, "what second subject moved in?"


def test_no_module_is_shadowed() -> None:
    """A name of a package is either one of its modules or something else that it offers (an operator's package is named
    after it)."""
    script = (
        "import importlib, pkgutil, types, fairkern\n"
        "for found in pkgutil.walk_packages(fairkern.__path__, 'fairkern.'):\n"
        "    if 'triton' in found.name or 'extension' in found.name or found.name.endswith('__main__'):\n"
        "        continue\n"
        "    try:\n"
        "        module = importlib.import_module(found.name)\n"
        "    except ImportError as error:\n"
        "        assert found.name.startswith('fairkern.integrations.'), f'{found.name}: {error}'\n"
        "        assert error.name and not error.name.startswith('fairkern'), f'{found.name}: {error}'\n"
        "        continue\n"
        "    package, _, name = module.__name__.rpartition('.')\n"
        "    held = getattr(importlib.import_module(package), name)\n"
        "    assert package == 'fairkern.ops' or isinstance(held, types.ModuleType), f'{found.name} is {held}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    ("from fairkern.axes import solutions", "fairkern.model.nested", "a floor above"),
    ("from fairkern.compact import apply", "fairkern.plans.build", "a floor above"),
    ("from fairkern.model.tensors import LISTS", "fairkern.plans.renaming", "sibling"),
    ("from fairkern.plans.build import build", "fairkern.model.linear", "sibling"),
    ("from fairkern.model import tensors", "fairkern.ops.gather", "sibling"),
    ("from fairkern.prove import prove", "fairkern.compact.cutting", "a floor above"),
    ("from fairkern.prove import prove", "fairkern.compensate.cut", "sibling"),
    ("from fairkern.compensate import fold", "fairkern.capture.joint", "a floor above"),
    ("from fairkern.ops import gather", "fairkern.prove.trial", "only capture and compact"),
    ("from torch import nn", "fairkern.plans.renaming", "torch.nn"),
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
    ("from fairkern.ops import gather\nfrom fairkern.capture.joint import joint_moments", "fairkern.compensate.refit"),
    ("from fairkern.plans.build import build\nfrom fairkern.compact import apply", "fairkern.prove.trial"),
    ("from fairkern.model.nested import call_model\nfrom fairkern.plans.cost import Cost", "fairkern.report.latency"),
]


@pytest.mark.parametrize(("source", "module"), GOOD)
def test_the_checker_lets_pass(source: str, module: str) -> None:
    assert violations(source, module) == []


def test_import_is_light() -> None:
    """Importing fairkern starts no GPU context and loads none of the packages that only some commands need."""
    script = (
        "import sys, fairkern, fairkern.cli\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert fairkern.__version__ and 'torch' not in sys.modules\n"
        "fairkern.trace\n"
        "import fairkern.cli.run, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = {'matplotlib', 'pandas', 'sklearn', 'transformers', 'torchvision', 'pytest', 'scipy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dir_shows_the_api() -> None:
    import fairkern as fk

    assert {name for name in dir(fk) if not name.startswith("_")} == set(fk.__all__)
    assert isinstance(fk.__version__, str)
