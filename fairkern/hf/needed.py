"""The package that reads and writes such folders, imported when it is needed, and without what it says meanwhile."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from fairkern.errors import InputError

_INSTALL = 'pip install "fairkern[hf]"'
_OLDEST = 5  # from there on it turns its own conversions of weights round when it saves


def transformers() -> Any:
    """The package. Raises InputError where it, or what it loads onto devices with, is missing or too old."""
    for name in ("transformers", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"folders of transformers take the package {name}, which is not installed: {_INSTALL}")
    package = importlib.import_module("transformers")
    if int(package.__version__.partition(".")[0]) < _OLDEST:
        raise InputError(
            f"transformers {package.__version__} is installed; expected {_OLDEST} or newer, which writes weights by "
            f"the names that they have on the hub: {_INSTALL}"
        )
    return package


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """transformers without progress bars, and with errors as the only thing that it says."""
    package = transformers()
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield package
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
