"""What is named on the command line and lies in Python: models, loaders, losses, inputs, functions, devices.

They are named as `package.module:callable` and called without arguments; the current folder can be imported from.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

import fairkern as fk
from fairkern.cli.words import meant


def named(spec: str) -> Any:
    """What `package.module:callable` returns when called without arguments.

    Raises `InputError` where the name leads nowhere or the callable wants arguments; it says what may have been meant.
    """
    found = _callable(spec)
    why = _cannot_take(found, 0)
    if why:
        raise fk.InputError(f"{spec!r} cannot be called without arguments ({why}); wrap it in a function")
    return found()


def function(spec: str, takes: int) -> Any:
    """The function that `package.module:callable` is, if it takes so many arguments, and else the one that it returns.

    So a loss is named as `torch.nn:CrossEntropyLoss` or as `torch.nn.functional:cross_entropy`.
    """
    found = _callable(spec)
    return named(spec) if _cannot_take(found, takes) or not _cannot_take(found, 0) else found


def module_file(spec: str) -> Path | None:
    """The file that `package.module:callable` is imported from, where there is one. Imports nothing."""
    places: list[str] | None = [os.getcwd(), *sys.path]
    parts, found = spec.partition(":")[0].split("."), None
    for number in range(1, len(parts) + 1):
        found = PathFinder.find_spec(".".join(parts[:number]), places)
        if found is None:
            return None
        places = list(found.submodule_search_locations or [])
    return Path(found.origin) if found is not None and found.origin else None


def signal(name: str | None) -> Any:
    """A signal by its name, or the function of a group that `package.module:callable` is, or returns."""
    return function(name, 1) if name is not None and ":" in name else name


def device(name: str | None) -> torch.device | None:
    """Raises `InputError` for one that is none, or that cannot be used here."""
    if name is None:
        return None
    try:
        found = torch.device(name)
    except RuntimeError:
        close = meant(name.replace("gpu", "cuda"), ("cpu", "cuda", "mps", "xpu"))
        raise fk.InputError(f"--device {name} is none; expected cpu, cuda or cuda:1{close}") from None
    try:
        torch.zeros(1, dtype=torch.float32, device=found)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each backend has its own for what is not there
        why = str(error).strip().partition("\n")[0]
        raise fk.InputError(f"--device {name} cannot be used here ({why})") from None
    return found


def on(device: torch.device | None, given: Any) -> Any:
    """A model, or tensors within lists, tuples and dictionaries, on this device; None: where they are."""
    if device is None:
        return given
    if isinstance(given, nn.Module):
        return given.to(device)
    return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), given)


def _callable(spec: str) -> Any:
    module_name, _, path = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not module_name or not path or "/" in spec or module_name.endswith(".py"):
        raise fk.InputError(f"{spec!r} is not of the form package.module:callable{_form(spec)}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise fk.InputError(
                f"{spec!r}: there is no module {error.name!r} in the current folder or among the installed packages"
                f"{meant(error.name, _modules(error.name))}"
            ) from error
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            holder, close = getattr(found, "__name__", found), meant(part, _public(found))
            raise fk.InputError(f"{spec!r}: {holder!r} has no attribute {part!r}{close}")
        found = getattr(found, part)
    if not callable(found):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a callable; name a function that returns it")
    if isinstance(found, nn.Module):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a function that returns it: wrap it in one")
    return found


def _cannot_take(found: Any, arguments: int) -> str:
    """Why a callable cannot be called with so many arguments; empty where it can, or where that is to be seen."""
    try:
        inspect.signature(found).bind(*[None] * arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # no signature to look at
        pass
    return ""


def _form(spec: str) -> str:
    """What another form may have been meant to be: `parts.model`, `parts.py:model`, `folder/parts.py:model`."""
    module, _, path = spec.replace(os.sep, ".").strip(".").partition(":")
    module = module.removesuffix(".py")
    if not path:
        module, _, path = module.rpartition(".")
    return f"; did you mean {module}:{path}?" if module and path and _exists(module) else ""


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _modules(name: str) -> list[str]:
    """Modules beside one that is not there."""
    package, dot, _ = name.rpartition(".")
    places = getattr(sys.modules.get(package), "__path__", []) if dot else None
    return [f"{package}{dot}{module.name}" for module in pkgutil.iter_modules(places)]


def _public(found: Any) -> Sequence[str]:
    return [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name, None))]
