"""Running statistics of BatchNorm, taken anew from what a cut model computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import inputs_of
from fairkern.errors import InputError
from fairkern.interrupts import undivided
from fairkern.model.in_use import at_work
from fairkern.model.nested import call_model
from fairkern.model.untouched import unchanged
from fairkern.ranks import ALONE, Ranks

_BatchNorm = nn.modules.batchnorm._BatchNorm


def recalibrate(model: nn.Module, loader: Iterable[Any], ranks: Ranks = ALONE) -> int:
    """Replace every BatchNorm's running mean and variance by the mean over the batches of `loader`, in place.

    All else runs in eval mode (dropout is off), without gradients, and is put back, also what the forward pass
    counts or keeps; after an error so are the statistics. Returns how many layers were recalibrated.

    Raises InputError (no BatchNorm with running statistics, a loader that yields nothing). Cost: one forward pass.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise InputError(f"this {type(model).__name__} has no BatchNorm with running statistics")
    with at_work(model, "recalibrate()"):
        statistics = _anew(model, loader, layers, ranks)
        undivided(partial(_replace, statistics))
    return len(layers)


def _anew(
    model: nn.Module, loader: Iterable[Any], layers: Sequence[_BatchNorm], ranks: Ranks
) -> list[tuple[Tensor, Tensor]]:
    """Buffers of these layers, with the plain mean over batches of each; all else is in eval mode. Of several processes
    each runs some of the batches."""
    done = False
    with unchanged(model), torch.no_grad():
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for number, inputs in enumerate(inputs_of(loader, model)):
            ranks.check()
            if ranks.own(number):
                call_model(model, inputs)
            done = True
        if not done:
            raise InputError("the loader yields no batch")
        return [pair for layer in layers for pair in _added_up(layer, ranks)]


def _added_up(layer: _BatchNorm, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
    """Every buffer of a layer, and the mean over the batches of all processes."""
    buffers = dict(layer.named_buffers(recurse=False))
    if not ranks.several:
        yield from ((buffer, buffer.clone()) for buffer in buffers.values())
        return
    count = layer.num_batches_tracked
    assert count is not None
    own = [buffer.double() if buffer is count else buffer.double() * count for buffer in buffers.values()]
    *sums, whole = ranks.summed("running statistics", [*own, count])
    for buffer, total in zip(buffers.values(), sums, strict=True):
        yield buffer, total if buffer is count else total / whole


def _replace(statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in statistics:
            buffer.copy_(value)
