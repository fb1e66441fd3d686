"""How long each layer of a model takes on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fairkern.model.in_use import in_use
from fairkern.model.nested import call_model, tensors_in
from fairkern.model.nothing import Nothing
from fairkern.model.own_calls import call_of
from fairkern.model.threads import of_this_thread
from fairkern.model.untouched import unchanged

_WARM_UP, _LEAST, _MOST, _SECONDS = 2, 6, 60, 0.6
UNDISTURBED = 10  # percentile: what other processes take is in the upper ones
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Layers:
    """Milliseconds of a forward pass: of the model, of the one beside it, and of each layer that holds parameters.

    `outputs`: elements and shape of what each layer returned.
    """

    ms: float
    beside_ms: float
    layers: dict[str, float]
    outputs: dict[str, tuple[int, tuple[int, ...]]]


def layers_ms(
    model: nn.Module, beside: nn.Module, example_inputs: Any, layers: Collection[str] | None = None
) -> Layers:
    """Time `model`, its layers and another model in turn, in eval mode, without gradients.

    A layer is a module that holds parameters and calls no other that does (what those others do themselves is left to
    the rest), or one of those named as `layers`. All calls of a layer in a pass count together, less what the clock
    itself takes. Tenth percentiles of 6 to 60 rounds, or 0.6 seconds, after two to warm up. On CUDA every layer is
    waited for, so that layers may add up to more than the model: they are scaled down to it.
    """
    clock = clock_for(example_inputs)
    example_inputs = call_of(model, example_inputs)
    watch = _Watch(clock, layers)

    def whole(which: nn.Module) -> float:
        start = clock()
        call_model(which, example_inputs)
        return clock() - start

    taken: dict[str, list[float]] = defaultdict(list)
    own: list[float] = []
    others: list[float] = []
    with evaluated(model), evaluated(beside), torch.no_grad():
        overhead = _overhead(clock)
        started = time.perf_counter()
        for i in range(_WARM_UP + _MOST):
            order = (own, model), (others, beside)
            for values, which in order if i % 2 else reversed(order):
                values.append(whole(which))
            watch.reset()
            with watch.on(model):
                call_model(model, example_inputs)
            for path, seconds in watch.spent.items():
                taken[path].append(seconds - overhead * watch.calls[path])
            if i >= _WARM_UP + _LEAST - 1 and time.perf_counter() - started > _SECONDS:
                break
    ms, beside_ms = low_ms(own), low_ms(others)
    found = {path: max(0.0, low_ms(values)) for path, values in taken.items() if path not in watch.callers}
    by = min(1.0, ms / (sum(found.values()) or ms))
    outputs = {path: watch.outputs[path] for path in found if path in watch.outputs}
    return Layers(ms, beside_ms, {path: value * by for path, value in found.items()}, outputs)


def low_ms(seconds: list[float]) -> float:
    """The tenth percentile of the rounds after warming up, in milliseconds."""
    return 1e3 * float(np.percentile(seconds[_WARM_UP:], UNDISTURBED))


def clock_for(example_inputs: Any) -> Clock:
    """Seconds, after what was started on a CUDA device that the inputs are on."""
    if not any(tensor.is_cuda for tensor in tensors_in(example_inputs)):
        return time.perf_counter

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode, what else it holds and random states are put back."""
    with in_use(model, "timing"), unchanged(model):
        model.eval()
        yield


@dataclass
class _Watch:
    """What hooks around the modules with parameters of their own have seen in one pass."""

    clock: Clock
    only: Collection[str] | None = None
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    outputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    callers: set[str] = field(default_factory=set)  # modules that called others that are watched
    _open: list[tuple[str, float]] = field(default_factory=list)

    def reset(self) -> None:
        self.spent.clear()
        self.calls.clear()
        self.outputs.clear()
        self._open.clear()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as handles:
            for path, module in model.named_modules():
                own = any(True for _ in module.parameters(recurse=False))
                if own if self.only is None else path in self.only and not isinstance(module, Nothing):
                    handles.callback(module.register_forward_pre_hook(of_this_thread(self._enter(path))).remove)
                    handles.callback(module.register_forward_hook(of_this_thread(self._leave(path))).remove)
            yield

    def _enter(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(_: nn.Module, __: Any) -> None:
            if self.only is None:
                self.callers.update(name for name, _ in self._open)
            self._open.append((path, self.clock()))

        return enter

    def _leave(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def leave(_: nn.Module, __: Any, output: Any) -> None:
            now = self.clock()
            name, start = self._open.pop()
            self.spent[name] += now - start
            self.calls[name] += 1
            tensor = next(tensors_in(output), None)
            if tensor is not None:
                elements = self.outputs.get(name, (0, ()))[0] + tensor.numel()
                self.outputs[name] = elements, tuple(tensor.shape)

        return leave


def _overhead(clock: Clock, calls: int = 200) -> float:
    """Seconds between the two hooks of a module that does nothing."""
    nothing = nn.Sequential(nn.Identity())
    x = torch.zeros(1, dtype=torch.float32, device="cpu")
    nothing.register_parameter("none", nn.Parameter(x.clone()))
    watch = _Watch(clock)
    taken = []
    with watch.on(nothing):
        for _ in range(calls):
            watch.reset()
            nothing(x)
            taken.append(watch.spent[""])
    return float(np.percentile(taken, UNDISTURBED))
