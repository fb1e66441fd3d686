"""What a loader yields: inputs, targets, class labels, checked batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairkern.capture.settings import ClassOf
from fairkern.errors import InputError
from fairkern.model.nested import call_model, map_tensors, tensors_in
from fairkern.model.tensors import device_of

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """One batch on the model's device. `labels`: int64 on the CPU, `[samples]` or, per place, `[samples, places …]`."""

    index: int
    inputs: Any
    targets: Any
    labels: Tensor

    @property
    def samples(self) -> int:
        return len(self.labels)


def batches(loader: Iterable[Any], device: torch.device, class_of: ClassOf | Literal[False] | None) -> Iterator[Batch]:
    """The loader's batches, moved to `device` and detached. Without classes (False) all samples are of class 0.

    Raises InputError for batches that are neither `(inputs, targets)` nor a mapping, that hold no tensor, and
    for labels that are not integers, are negative, or do not count the batch's samples. A `class_of` may give one per
    place of every sample instead, negative for none.
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
        if class_of is False:
            labels = torch.zeros(len(first), dtype=torch.int64)
        else:
            labels = _labels(index, targets if class_of is None else class_of(raw), len(first), class_of is not None)
        yield Batch(index, inputs, targets, labels)


def labelled(given: Any) -> bool:
    """Whether a batch's targets are class labels."""
    try:
        next(batches([given], torch.device("cpu"), None))
    except InputError:
        return False
    return True


def inputs_of(loader: Iterable[Any], model: nn.Module) -> Iterator[Batch]:
    """The loader's batches on the model's device; classes play no part."""
    return batches(loader, device_of(model), False)


def first_batch(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and a loader that still yields it (a one-shot iterator gets it back in front).

    A loader that shuffles draws from the global random state, which is put back.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        iterator: Iterator[Any] = iter(loader)
        try:
            first = next(iterator)
        except StopIteration:
            raise InputError("the loader yields no batch") from None
    return first, itertools.chain([first], iterator) if iterator is loader else loader


def head(batch: Any, model: nn.Module, samples: int = 2) -> Any:
    """The inputs of a batch on the model's device, cut to a few samples where all share their first dimension."""
    inputs = batch if isinstance(batch, Mapping) else batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    device = device_of(model)
    sizes = {t.shape[:1] for t in tensors_in(inputs)}
    short = len(sizes) == 1 and all(len(s) == 1 for s in sizes)
    return map_tensors(inputs, lambda t: (t[:samples] if short else t).detach().to(device))


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
    hint = (
        ""
        if own
        else "; pass class_of= to say which class a sample belongs to, or class_of=False (--no-classes) to do without U"
    )
    if not isinstance(labels, Tensor):
        raise InputError(f"{source} of batch {index} are {_describe(labels)}; expected integer labels [samples]{hint}")
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise InputError(f"{source} of batch {index} are {labels.dtype}; expected integer class labels{hint}")
    if labels.ndim < 1 or len(labels) != samples or (labels.ndim > 1 and not own):
        more = f", or ({samples}, …) with one for every place" if own else ""
        raise InputError(
            f"{source} of batch {index} have shape {tuple(labels.shape)}; expected ({samples},), one class label "
            f"per sample{more}{hint}"
        )
    labels = labels.to("cpu", torch.int64)
    if labels.ndim == 1 and len(labels) and int(labels.min()) < 0:
        raise InputError(f"{source} of batch {index} hold the negative label {int(labels.min())}{hint}")
    return labels


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
