"""fairkern: the accelerated engine for FAIR-Pruner, structured pruning of neural networks.

`trace` a model, `score` its units in one pass over some data, get a `Scores.plan` for any budget, `apply` it.

The package by itself imports nothing, so that a command may say its version, or be interrupted, before torch is there:
what users import lies in `fairkern.public`, and comes with the first name of it that is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from fairkern.version import package_version

if TYPE_CHECKING:
    from fairkern.public import *  # noqa: F403

__version__ = package_version()


def __getattr__(name: str) -> Any:
    """A room by its name, or what users import: Python asks here for what is not there yet."""
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.isidentifier() and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    public = importlib.import_module("fairkern.public")
    if name != "__all__" and name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update({known: getattr(public, known) for known in public.__all__}, __all__=public.__all__)
    return globals()[name]


def __dir__() -> list[str]:
    """The API: rooms that importing it has loaded are nobody's business but the package's."""
    return [*__getattr__("__all__"), "__doc__", "__file__", "__name__", "__path__", "__version__"]
