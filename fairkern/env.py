"""The only reader of os.environ. Nothing is read at import; each function reads when it is called."""

from __future__ import annotations

import os


def triton_interpreted() -> bool:
    """Whether Triton kernels run in the interpreter (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def cache_home() -> str:
    """Folder for cached files: `FAIRKERN_CACHE`, else `XDG_CACHE_HOME/fairkern`, else `~/.cache/fairkern`."""
    explicit = os.environ.get("FAIRKERN_CACHE")
    if explicit:
        return explicit
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "fairkern")
