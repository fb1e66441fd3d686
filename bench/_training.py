"""What scoring is held against: the passes of an ordinary training epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def forward_backward(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """What a training epoch computes before the optimiser's step: activations, their gradients, weight gradients."""
    model.train()
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss_fn(model(x), y).backward()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads. The demo trains with one: layers so small gain nothing from a second, and times get unsteady."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
