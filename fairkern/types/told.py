"""How far a stage is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[int, int | None, str], None]
"""Called with what is done, of how much (None: that is not known), and the stage in words."""


def silent(done: int, total: int | None, stage: str) -> None:
    """Where nobody looks."""
