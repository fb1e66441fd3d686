"""How long a forward pass takes on this machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from fairkern.model.nested import call_model, tensors_in
from fairkern.model.own_calls import call_of
from fairkern.model.tensors import device_of
from fairkern.model.untouched import same_grads
from fairkern.report.modules import clock_for, evaluated
from fairkern.types import FloatArray

_WARM_UP, _LEAST, _MOST, _SECONDS = 3, 10, 200, 0.5
STEADY = 1.25  # on a quiet machine the 80th percentile is within some per cent of the 20th
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
    return [float(np.percentile(values, percentile)) for values in _taken(models, example_inputs, least)]


def timed(model: nn.Module, example_inputs: Any, *, least: int = _LEAST) -> dict[str, Any]:
    """`Report.timing` of one model by itself, as `before`."""
    (taken,) = _taken([model], example_inputs, least)
    return _timing({"before": _percentiles(taken)}, len(taken), model, example_inputs)


def compared(model: nn.Module, small: nn.Module, example_inputs: Any, *, least: int = _LEAST) -> dict[str, Any]:
    """`Report.timing` of a model and what is left of it, in turn: both passes of a pair meet the same machine.

    Half a second is for both together.
    """
    before, after = (np.array(taken) for taken in _taken([model, small], example_inputs, least, _SECONDS / 2))
    spread = {"before": _percentiles(before), "after": _percentiles(after), "speedup": _percentiles(before / after)}
    return _timing(spread, len(before), model, example_inputs)


def one_after_the_other(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """`Report.timing` of two that could not take turns, each `timed` by itself: no pairs, so no speedup."""
    steady = before["steady"] and after["steady"]
    return {**before, "after": after["before"], "passes": min(before["passes"], after["passes"]), "steady": steady}


def _percentiles(values: list[float] | FloatArray) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (20, 50, 80)}


def _timing(spread: dict[str, dict[str, float]], passes: int, model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    quiet = all(spread[when]["p80"] <= STEADY * spread[when]["p20"] for when in ("before", "after") if when in spread)
    return {
        **spread,
        "passes": passes,
        "threads": torch.get_num_threads(),
        "device": device(model),
        "inputs": [
            f"{'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(example_inputs)
        ],
        "steady": quiet,
        "bound": STEADY,
    }


def _said(tensor: torch.Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"


def _taken(
    models: Sequence[nn.Module], example_inputs: Any, least: int, seconds: float = _SECONDS
) -> list[list[float]]:
    """Milliseconds of every pass of each model; `seconds`: of passes of the first one, after which there is no more."""
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
        while len(taken[0]) < least or (len(taken[0]) < _MOST and sum(taken[0]) < seconds):
            for values, model in zip(taken, models, strict=True):
                values.append(once(model))
    return [[1e3 * value for value in values] for values in taken]
