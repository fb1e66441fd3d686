"""A progress bar for a pass over a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

OnBatch = Callable[[int, int | None, str], None]


@contextmanager
def progress(show: bool = True) -> Iterator[OnBatch]:
    """Yields `on_batch(done, total or None, stage)`; draws on standard error, and only on a terminal.

    A bar per stage with the time left, without an end where the number of batches is unknown; gone when the block ends.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:

        def on_batch(done: int, total: int | None, stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield on_batch
