"""Which version of fairkern this is."""

from __future__ import annotations

import importlib.metadata


def package_version() -> str:
    """Version of the installed package; "unknown" when it runs from a folder that was never installed."""
    try:
        return importlib.metadata.version("fairkern")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
