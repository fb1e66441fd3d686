"""How long a forward pass takes on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from fairkern.model.nested import call_model
from fairkern.model.own_calls import call_of
from fairkern.model.tensors import device_of
from fairkern.model.untouched import same_grads
from fairkern.report.modules import clock_for, evaluated

_WARM_UP, _LEAST, _MOST, _SECONDS = 3, 10, 200, 0.5
FEW = 2  # passes of a model whose passes take a quarter of a second: what is measured beside all else is to cost little


def device(model: nn.Module) -> dict[str, str]:
    """The device that a model is on, in words."""
    place = device_of(model)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
    return {"device": place.type, "name": name}


def latency_ms(model: nn.Module, example_inputs: Any, least: int = _LEAST) -> float:
    """Median milliseconds of a forward pass in eval mode, without gradients, on `example_inputs`.

    Three passes to warm up, then at least `least`, up to 200 or half a second. On CUDA each pass is waited for.
    The modules' train / eval modes are put back. Cost: half a second, or `least` passes of a slow model, and three.
    """
    return latencies_ms([model], example_inputs, least=least)[0]


def latencies_ms(
    models: Sequence[nn.Module], example_inputs: Any, percentile: float = 50, *, least: int = _LEAST
) -> list[float]:
    """The same of several models that take turns, so that a machine that slows down slows all of them.

    Medians, or another `percentile`.
    """
    clock = clock_for(example_inputs)
    example_inputs = call_of(models[0], example_inputs)

    def once(model: nn.Module) -> float:
        started = clock()
        call_model(model, example_inputs)
        return clock() - started

    taken: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluated(model))
            stack.enter_context(same_grads(model))
        stack.enter_context(torch.no_grad())
        for _ in range(min(_WARM_UP, least)):
            for model in models:
                once(model)
        while len(taken[0]) < least or (len(taken[0]) < _MOST and sum(taken[0]) < _SECONDS):
            for values, model in zip(taken, models, strict=True):
                values.append(once(model))
    return [1e3 * float(np.percentile(values, percentile)) for values in taken]
