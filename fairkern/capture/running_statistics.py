"""Running statistics of BatchNorm, taken anew from what a cut model computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fairkern.capture.batches import inputs_of
from fairkern.errors import InputError
from fairkern.model.nested import call_model

_BatchNorm = nn.modules.batchnorm._BatchNorm


def recalibrate(model: nn.Module, loader: Iterable[Any]) -> int:
    """Replace every BatchNorm's running mean and variance by the mean over the batches of `loader`, in place.

    All else runs in eval mode (dropout is off), without gradients; modes and momenta are put back, also after an error,
    and so are the statistics then. Returns how many layers were recalibrated.

    Raises InputError (no BatchNorm with running statistics, a loader that yields nothing). Cost: one forward pass.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise InputError(f"this {type(model).__name__} has no BatchNorm with running statistics")
    modes = {m: m.training for m in model.modules()}
    momenta = {m: m.momentum for m in layers}
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    done = False
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over batches
            layer.train()
        with torch.no_grad():
            for inputs in inputs_of(loader, model):
                call_model(model, inputs)
                done = True
    except BaseException:
        done = False
        raise
    finally:
        for module, training in modes.items():
            module.training = training
        for layer in layers:
            layer.momentum = momenta[layer]
        for buffer, saved in () if done else before:
            buffer.copy_(saved)
    if not done:
        raise InputError("the loader yields no batch")
    return len(layers)
