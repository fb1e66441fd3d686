"""How long a forward pass takes on this machine."""

from __future__ import annotations

import platform
import statistics
import time
from typing import Any

import torch
from torch import nn

from fairkern.nested import call_model, tensors_in

_WARM_UP, _LEAST, _MOST, _SECONDS = 3, 10, 200, 0.5


def device(model: nn.Module) -> dict[str, str]:
    """The device that a model is on, in words."""
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
    return {"device": place.type, "name": name}


def latency_ms(model: nn.Module, example_inputs: Any) -> float:
    """Median milliseconds of a forward pass in eval mode, without gradients, on `example_inputs`.

    Three passes to warm up, then at least ten, up to 200 or half a second. On CUDA each pass is waited for.
    The modules' train / eval modes are put back. Cost: half a second, or thirteen passes of a slow model.
    """
    modes = [(module, module.training) for module in model.modules()]
    cuda = any(tensor.is_cuda for tensor in tensors_in(example_inputs))

    def once() -> float:
        started = time.perf_counter()
        call_model(model, example_inputs)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(_WARM_UP):
                once()
            taken: list[float] = []
            while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _SECONDS):
                taken.append(once())
    finally:
        for module, mode in modes:
            module.training = mode
    return 1e3 * statistics.median(taken)
