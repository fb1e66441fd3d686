"""What is named on the command line: callables, files to read, places to write.

Models, loaders, losses and inputs are named as `package.module:callable` and called without arguments; the current
folder can be imported from.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

import fairkern as fk


def named(spec: str) -> Any:
    """What `package.module:callable` returns when called without arguments.

    Raises `InputError` where the name leads nowhere or the callable wants arguments.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise fk.InputError(f"{spec!r} is not of the form package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise fk.InputError(
                f"{spec!r}: there is no module {error.name!r} in the current folder or among the installed packages"
            ) from error
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            raise fk.InputError(f"{spec!r}: {getattr(found, '__name__', found)!r} has no attribute {part!r}")
        found = getattr(found, part)
    if not callable(found):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a callable; name a function that returns it")
    if isinstance(found, nn.Module):
        raise fk.InputError(f"{spec!r} is a {type(found).__name__}, not a function that returns it: wrap it in one")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise fk.InputError(f"{spec!r} cannot be called without arguments ({error}); wrap it in a function") from error
    except ValueError:  # no signature to look at: call it and see
        pass
    return found()


def existing(path: Path, within: str) -> Path:
    """The same path, once there is a file; `within` is its name in a folder of `fairkern prune`."""
    if path.is_dir():
        there = f": {path / within}" if (path / within).is_file() else ""
        raise fk.InputError(f"{path} is a folder; name the file{there}")
    if not path.is_file():
        raise fk.InputError(f"there is no file {path}")
    return path


def writable(path: Path, *, folder: bool = False) -> Path:
    """The same path, once a file or folder can be written there: better known before an hour's work."""
    if path.exists() and path.is_dir() != folder:
        is_, expected = ("file", "folder") if folder else ("folder", "file")
        raise fk.InputError(f"cannot write {path}: it is a {is_}, and a {expected} is expected")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fk.InputError(f"cannot write {path}: {error.strerror or error}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise fk.InputError(f"cannot write {path}: no permission")
    return path
