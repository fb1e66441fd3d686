"""Ctrl-C at any line: what Python does there when a signal has come, and what must not be left behind.

Python runs a signal's handler between two instructions, with the frame that it has come to. So does the trace function
here, at every function that is entered and every line: in fairkern's files, and in those of the context managers that
are used there. What the handler raises is raised in that frame.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import inspect
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fairkern
from fairkern.model.in_use import _USES
from fairkern.model.process import _TURNS

_TORCH = Path(torch.__file__).parent
WATCHED = (
    str(Path(fairkern.__file__).parent),
    contextlib.__file__,
    str(_TORCH / "autograd" / "grad_mode.py"),
    str(_TORCH / "utils" / "_python_dispatch.py"),
    str(_TORCH / "overrides.py"),
    str(_TORCH / "random.py"),
)


COMPILER = str(_TORCH / "_dynamo" / "utils.py")  # what is called as modules go, once something was compiled


class Interrupt:
    """Ctrl-C at the `number`-th place that is come to within; `happened` tells whether there were as many.

    Without a number it never comes, and `come_to` has all places in order.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number, self.happened = number, False
        self.come_to: list[tuple[str, str, int, str]] = []

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if self.happened or not frame.f_code.co_filename.startswith(WATCHED):
            return None
        code = frame.f_code
        if _looked_for(code, frame.f_lasti, event):
            self.come_to.append((code.co_filename, code.co_name, frame.f_lineno, event))
            if len(self.come_to) == self.number:
                self.happened = True
                sys.settrace(None)
                handler: Any = signal.getsignal(signal.SIGINT)
                handler(signal.SIGINT, frame)
        return self._trace


def _looked_for(code: CodeType, at: int, event: str) -> bool:
    """Whether Python may look for signals here. It does not where something is thrown into a generator, to close it
    say, nor between the end of a `with` and the first instruction of its `__exit__`, nor at a `try` itself."""
    if event == "call":
        return not code.co_flags & inspect.CO_GENERATOR
    return event == "line" and at not in _passed_by(code)


@functools.cache
def _passed_by(code: CodeType) -> frozenset[int]:
    """Where nothing is done, and where `__exit__(None, None, None)` is called."""
    steps = list(dis.get_instructions(code))
    passed = {step.offset for step in steps if step.opname == "NOP"}
    for i, step in enumerate(steps):
        ahead = steps[i + step.opname.startswith(("SWAP", "ROT_", "POP_BLOCK")) :][:3]  # of a value that is returned
        given = [s.opname == "DUP_TOP" or (s.opname == "LOAD_CONST" and s.argval is None) for s in ahead]
        if len(given) == 3 and all(given):
            passed.add(step.offset)
    return frozenset(passed)


def places(do: Callable[[], object], *, all_of_them: bool = False) -> list[int]:
    """Numbers of the places that `do` comes to: of each line the first and the last time, or every time."""
    watch = Interrupt()
    with watch:
        do()
    numbers = range(1, len(watch.come_to) + 1)
    if all_of_them:
        return list(numbers)
    first = dict(reversed([*zip(watch.come_to, numbers, strict=True)]))
    last = dict(zip(watch.come_to, numbers, strict=True))
    return sorted({*first.values(), *last.values()})


class Left:
    """What is there before, of a model and of the process, and what differs afterwards."""

    def __init__(self, *models: nn.Module) -> None:
        self.models = models
        self.before = self._now()

    def differences(self) -> list[str]:
        until = time.monotonic() + 2
        while threading.active_count() > self.before["threads"] and time.monotonic() < until:
            time.sleep(0.001)  # what sends a signal again ends by itself
        now = self._now()
        return [key for key, was in self.before.items() if not _same(was, now[key])]

    def _now(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "threads": threading.active_count(),
            "handler": signal.getsignal(signal.SIGINT),
            "uses": len(_USES),
            "turns": len(_TURNS),
            "python": hash(random.getstate()),
            "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002
            "torch": torch.get_rng_state(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "mkldnn": torch._C._get_mkldnn_enabled(),
            "gradients": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "function modes": torch._C._len_torch_function_stack(),
            "dispatch modes": torch._C._len_torch_dispatch_stack(),
        }
        for number, model in enumerate(self.models):
            for path, module in model.named_modules():
                state[f"{number} {path} class"] = type(module)
                state[f"{number} {path}"] = [(k, _entries(v)) for k, v in vars(module).items()]
            tensors = (*model.named_parameters(), *model.named_buffers())
            state |= {f"{number} {n}": (id(t), t.requires_grad, t.grad is None, t.detach().clone()) for n, t in tensors}
        return state


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (set, deque)):  # the order of a set that is filled again is chance
        return sorted(map(id, value)) if isinstance(value, set) else [id(item) for item in value]
    return [id(item) for item in value] if isinstance(value, (list, tuple)) else id(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def sweep(
    do: Callable[[], object],
    check: Callable[[], list[str]],
    numbers: Iterable[int],
    prepare: Callable[[], object] = lambda: None,
) -> Iterator[str]:
    """Run `do` with an interrupt at each of these places: every place at which one is lost, or something is left.

    Python does not collect what is garbage within a run: a destructor that it happens to run there swallows what is
    raised in it, whoever is interrupted.
    """
    for number in numbers:
        prepare()
        interrupt = Interrupt(number)
        gc.disable()
        try:
            with interrupt:
                do()
            if interrupt.happened:
                yield f"lost: {interrupt.come_to[-1]}"
        except KeyboardInterrupt:
            pass
        finally:
            gc.enable()
        left = check()
        if left:
            yield f"{', '.join(left)}: {interrupt.come_to[-1]}"
