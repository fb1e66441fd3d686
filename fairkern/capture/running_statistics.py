"""Running statistics of BatchNorm, taken anew from what a cut model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fairkern.capture.batches import inputs_of
from fairkern.errors import InputError
from fairkern.model.in_use import at_work
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
    done = False
    with at_work(model, "recalibrate()"), torch.no_grad(), _anew(model, layers):
        for inputs in inputs_of(loader, model):
            call_model(model, inputs)
            done = True
        if not done:
            raise InputError("the loader yields no batch")
    return len(layers)


@contextlib.contextmanager
def _anew(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within, these layers take the plain mean over batches, and all else is in eval mode."""
    with contextlib.ExitStack() as steps, contextlib.ExitStack() as failed:
        for module in model.modules():
            steps.callback(setattr, module, "training", module.training)
        for layer in layers:
            steps.callback(setattr, layer, "momentum", layer.momentum)
            for buffer in layer.buffers(recurse=False):
                failed.callback(buffer.copy_, buffer.clone())
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        yield
        failed.pop_all()
