"""What a module's code is made to run under, kept for the backward pass to run it under again.

Gradient checkpointing calls a function of the module's code a second time, when its `forward` has long returned.
`torch.utils.checkpoint` keeps such a function in a frame of its own, a custom `autograd.Function` calls it in its
`backward`, whosever that is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FrameType, GeneratorType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fairkern.errors import InputError
from fairkern.model.call_places import begins
from fairkern.model.own_modes import OwnMode

Start = Callable[[], TorchFunctionMode]


class OwnCalls(OwnMode):
    """A function mode that means the calls of one module's own code, not those of modules that run inside."""

    running = 0  # modules that are running inside


def enter(*_: Any) -> None:
    """A module begins to run: a hook."""
    for mode in modes():
        mode.running += 1


def leave(*_: Any) -> None:
    """A module has run: a hook."""
    for mode in modes():
        mode.running -= 1


def modes() -> list[OwnCalls]:
    """Those that are entered, the innermost last."""
    entered: list[Any] = _get_current_function_mode_stack()
    return [mode for mode in entered if isinstance(mode, OwnCalls)]


class Under:
    """A function, whenever it is called under a mode that `start` makes."""

    def __init__(self, function: Callable[..., Any], start: Start) -> None:
        self._function, self._start = function, start
        functools.update_wrapper(self, function)

    @begins
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        enter()  # to modes of a forward pass that asks for gradients inside
        try:
            with self._start():
                return self._function(*args, **kwargs)
        finally:
            leave()


def under(frame: FrameType, start: Start) -> None:
    """What `frame` calls may be called again in a backward pass: then under the mode that `start` makes.

    `frame` is one that `call_places.way` names. Said several times, the first counts.
    """
    found = frame.f_locals.get("gen") if frame.f_globals.get("__name__") == "torch.utils.checkpoint" else None
    if isinstance(found, GeneratorType) and found.gi_running:  # what checkpointing itself calls before the function
        return
    if isinstance(found, GeneratorType) and found.gi_frame is not None:
        checkpoint: Any = found.gi_frame.f_locals.get("new_frame")
        if not hasattr(checkpoint, "recompute_fn"):
            raise InputError(
                f"torch.utils.checkpoint of torch {torch.__version__} is not known: pass use_reentrant=True"
            )
        if not isinstance(checkpoint.recompute_fn, Under):
            checkpoint.recompute_fn = Under(checkpoint.recompute_fn, start)
        return
    if frame.f_code.co_name == "backward":  # which is under way: hooks come too late, and older engines call the second
        return
    node = frame.f_locals.get("ctx")
    if isinstance(node, BackwardCFunction) and not hasattr(node, "_fairkern_recomputes"):
        node._fairkern_recomputes = True  # type: ignore[attr-defined]
        running: list[TorchFunctionMode] = []

        def before(_: Any) -> None:
            enter()
            running.append(start())
            running[-1].__enter__()

        def after(*_: Any) -> None:
            running.pop().__exit__(None, None, None)
            leave()

        # after an error the second does not run: the engine puts the modes back itself when it leaves a node
        node.register_prehook(before)
        node.register_hook(after)
