"""What a model's own code raised, and where: in words for a report, and as the module that was running."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch import nn


def in_words(error: BaseException, model: nn.Module, most: int = 160) -> str:
    """Type and first line of an error; where it says nothing, the module and the line of code that raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if lines:
        return f"{name}: {lines[0][:most]}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{name} without a message"
    path = next(running(error, model), "")
    at = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}"
    return f"{name} without a message, raised in {path or 'the model'} ({at}: {frames[-1].line or ''})"[: 2 * most]


def running(error: BaseException, model: nn.Module) -> Iterator[str]:
    """Paths of the modules of `model` that were running when the error was raised, from the inside out."""
    paths = {id(module): path for path, module in model.named_modules()}
    frames: list[FrameType] = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = None
    for frame in reversed(frames):
        path = paths.get(id(frame.f_locals.get("self")))
        if path is not None and path != last:
            yield path
            last = path
