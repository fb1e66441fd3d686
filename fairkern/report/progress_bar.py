"""A progress bar for a pass over a loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fairkern.options import flag, function
from fairkern.types import Told, silent

Shown = bool | Told


def shown(given: Any) -> Shown:
    """What users say of progress: whether bars are drawn, or a function that is told. Raises InputError for others."""
    if callable(given):
        function("progress", given, "True, False or a function of done, total and stage")
        return given
    return flag("progress", given, "True, False or a function of done, total and stage")


@contextmanager
def progress(show: Shown = True) -> Iterator[Told]:
    """Yields `on_batch(done, total or None, stage)`; draws on standard error, and only on a terminal.

    A bar per stage with the time left, without an end where the number of batches is unknown; gone when the block ends.
    `show`: False draws nothing; a function is told in place of the bars.
    """
    if callable(show):
        yield show
        return
    console = Console(stderr=True)
    if not (show and console.is_terminal):  # where a bar that is disabled may still end its line
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as bar:

        def on_batch(done: int, total: int | None, stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield on_batch
