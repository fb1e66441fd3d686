"""How long each layer of a model takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fairkern.nested import call_model, tensors_in

_WARM_UP, _ROUNDS, _SECONDS = 3, 60, 0.5
Clock = Callable[[], float]  # seconds


def module_ms(model: nn.Module, example_inputs: Any) -> dict[str, float]:
    """Median milliseconds that each module with a weight of its own takes in one forward pass in eval mode.

    All calls of a module in a pass count together. On CUDA every module is waited for, so the sum is more than the
    pass takes; shares are what it is for. Cost: at most 60 passes or half a second, after three to warm up.
    """
    clock = _clock(example_inputs)
    spent: dict[str, float] = defaultdict(float)
    taken: dict[str, list[float]] = defaultdict(list)
    with _timed(model, clock, spent), torch.inference_mode():
        started = time.perf_counter()
        for round_ in range(_WARM_UP + _ROUNDS):
            spent.clear()
            call_model(model, example_inputs)
            if round_ >= _WARM_UP:
                for path, seconds in spent.items():
                    taken[path].append(1e3 * seconds)
                if time.perf_counter() - started > _SECONDS and round_ >= _WARM_UP + 4:
                    break
    return {path: statistics.median(values) for path, values in taken.items()}


def _clock(example_inputs: Any) -> Clock:
    if not any(tensor.is_cuda for tensor in tensors_in(example_inputs)):
        return time.perf_counter

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited


@contextmanager
def _timed(model: nn.Module, clock: Clock, spent: dict[str, float]) -> Iterator[None]:
    """Hooks around every module that holds parameters itself; modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    starts: dict[str, float] = {}
    with ExitStack() as handles:
        for path, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):

                def enter(_: nn.Module, __: Any, path: str = path) -> None:
                    starts[path] = clock()

                def leave(_: nn.Module, __: Any, ___: Any, path: str = path) -> None:
                    spent[path] += clock() - starts[path]

                handles.callback(module.register_forward_pre_hook(enter).remove)
                handles.callback(module.register_forward_hook(leave).remove)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
