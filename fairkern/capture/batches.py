"""What a loader yields: inputs, targets, class labels, checked batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.nested import call_model, map_tensors, tensors_in

LossFunction = Callable[[Any, Any], Tensor]
ClassOf = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """One batch on the model's device. `labels` is int64 `[samples]` on the CPU."""

    index: int
    inputs: Any
    targets: Any
    labels: Tensor

    @property
    def samples(self) -> int:
        return len(self.labels)


def batches(loader: Iterable[Any], device: torch.device, class_of: ClassOf | None) -> Iterator[Batch]:
    """The loader's batches, moved to `device` and detached.

    Raises InputError for batches that are neither `(inputs, targets)` nor a mapping, that hold no tensor, and
    for labels that are not integers, are negative, or do not count the batch's samples.
    """
    for index, given in enumerate(loader):
        inputs: Any
        targets: Any
        raw = map_tensors(given, lambda t: t.detach().to(device, non_blocking=True))
        if isinstance(raw, Mapping):
            inputs, targets = raw, raw.get("labels")
        elif isinstance(raw, (tuple, list)) and len(raw) == 2:
            inputs, targets = raw
        else:
            raise InputError(
                f"batch {index} is {_describe(given)}; expected (inputs, targets) or a dict of keyword arguments"
            )
        first = next(tensors_in(inputs), None)
        if first is None or first.ndim == 0:
            raise InputError(f"batch {index} holds no tensor of samples in its inputs ({_describe(given)})")
        labels = _labels(index, targets if class_of is None else class_of(raw), len(first), class_of is not None)
        yield Batch(index, inputs, targets, labels)


def last_sample(batch: Batch) -> Batch:
    """The batch of its last sample alone: every input tensor with a row per sample keeps the last row."""
    n = batch.samples

    def last(tensor: Tensor) -> Tensor:
        return tensor[-1:] if tensor.ndim and len(tensor) == n else tensor

    return Batch(batch.index, map_tensors(batch.inputs, last), map_tensors(batch.targets, last), batch.labels[-1:])


def loss_of(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> Tensor:
    """The batch's loss: `loss_fn(model(inputs), targets)`, or `model(**batch).loss` without one."""
    output = call_model(model, batch.inputs)
    if loss_fn is not None:
        loss = loss_fn(output, batch.targets)
    else:
        found = getattr(output, "loss", None)
        if found is None and isinstance(output, Mapping):
            found = output.get("loss")
        if found is None:
            raise InputError(
                f"the model returns {type(output).__name__} without a loss and loss_fn is None; "
                "pass loss_fn(output, targets)"
            )
        loss = found
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(f"the loss of batch {batch.index} is {_describe(loss)}; expected a tensor with one element")
    return loss.reshape(())


def _labels(index: int, labels: Any, samples: int, own: bool) -> Tensor:
    source = "class_of(batch)" if own else "the targets"
    hint = "" if own else "; pass class_of= to say which class a sample belongs to"
    if not isinstance(labels, Tensor):
        raise InputError(f"{source} of batch {index} are {_describe(labels)}; expected integer labels [samples]{hint}")
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise InputError(f"{source} of batch {index} are {labels.dtype}; expected integer class labels{hint}")
    if labels.ndim != 1 or len(labels) != samples:
        raise InputError(
            f"{source} of batch {index} have shape {tuple(labels.shape)}; expected ({samples},), one class label "
            f"per sample{hint}"
        )
    labels = labels.to("cpu", torch.int64)
    if len(labels) and int(labels.min()) < 0:
        raise InputError(f"{source} of batch {index} hold the negative label {int(labels.min())}{hint}")
    return labels


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
