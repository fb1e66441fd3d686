"""What models take, and what a proof on the whole of one takes beside it."""

from __future__ import annotations

from torch import nn

from fairkern.compact.descriptors import tensors_of

_COPIES = 2  # in float64: one that is masked, and what a cut leaves of it, at most


def weight_bytes(model: nn.Module) -> int:
    """What a model's parameters and buffers take, those that several names share once."""
    return sum(held.tensor.numel() * held.tensor.element_size() for held in tensors_of(model))


def whole_bytes(model: nn.Module) -> int:
    """What a proof on the whole model takes."""
    tensors = (held.tensor for held in tensors_of(model))
    return sum(t.numel() * (8 if t.is_floating_point() else t.element_size()) * _COPIES for t in tensors)
