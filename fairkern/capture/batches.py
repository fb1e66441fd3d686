"""What a loader yields: inputs, targets, class labels, checked batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairkern.capture.settings import ClassOf, SamplesOf
from fairkern.capture.structure import Parts, Reader, describe
from fairkern.errors import InputError
from fairkern.model.nested import Call, map_tensors, tensors_in
from fairkern.model.own_calls import call_of, handed_on
from fairkern.model.tensors import device_of
from fairkern.model.untouched import valueless
from fairkern.surroundings import ordinary


@dataclass(frozen=True)
class Batch:
    """One batch, or a sample of one, on the model's device. `labels`: int64 on the CPU, `[samples]` or, per place,
    `[samples, places …]`. `number`: how many came before it."""

    index: int
    parts: Parts
    labels: Tensor
    number: int = 0

    @property
    def samples(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Call:
        """What the model is called with for its prediction."""
        return self.parts.asked

    @property
    def targets(self) -> Any:
        return self.parts.targets


def batches(
    loader: Iterable[Any],
    model: nn.Module,
    class_of: ClassOf | Literal[False] | None,
    samples_of: SamplesOf | None = None,
) -> Iterator[Batch]:
    """The loader's batches, moved to the model's device and detached. Without classes (False) all are of class 0.

    A list of images comes one by one: a model pads the images of a list to one size, and picks places of its own in
    each, so that only by itself an image is what it is in any other batch.

    Raises InputError for batches that are neither `(inputs, targets)` nor a mapping, that hold no tensor, or of which
    the structure does not say how many samples they hold; and for labels that are not integers, are negative, or do
    not count the batch's samples. A `class_of` may give one per place of every sample instead, negative for none.
    """
    number = 0
    for index, raw, parts in read(loader, model, samples_of):
        if parts.samples is None:
            raise InputError(
                f"how many samples batch {index} holds cannot be told from what is in it ({describe(raw)}): pass "
                "samples_of=, a function of a batch as the loader gives it, that returns their number"
            )
        if class_of is False:
            labels = torch.zeros(parts.samples, dtype=torch.int64, device="cpu")
        else:
            given = parts.targets if class_of is None else class_of(raw)
            labels = _labels(index, given, parts.samples, class_of is not None)
        for part, rows in _singly(parts):
            yield Batch(index, part, labels[rows], number)
            number += 1


def labelled(given: Any, model: nn.Module, samples_of: SamplesOf | None = None) -> bool:
    """Whether a batch's targets are class labels."""
    try:
        next(batches([given], model, None, samples_of))
    except InputError:
        return False
    return True


def inputs_of(loader: Iterable[Any], model: nn.Module, *, singly: bool = False) -> Iterator[Call]:
    """What the model is called with for its prediction, batch by batch, on its device; images of a list may come one by
    one, as `batches` gives them."""
    for _, _, parts in read(loader, model):
        for part, _ in _singly(parts) if singly else ((parts, slice(None)),):
            yield part.asked


def read(
    loader: Iterable[Any], model: nn.Module, samples_of: SamplesOf | None = None
) -> Iterator[tuple[int, Any, Parts]]:
    """Index, the batch as it came, moved to the model's device and detached, and how the model is called with it.

    Raises InputError for batches that are neither `(inputs, targets)` nor a mapping, or that hold no tensor.
    """
    reader, device = Reader(model, samples_of), device_of(model)
    for index, given in enumerate(loader):
        if any(valueless(tensor) for tensor in tensors_in(given)) and device.type != "meta":
            raise InputError(
                f"batch {index} holds a tensor without values (on the meta device, or fake); give real ones"
            )
        raw = map_tensors(given, lambda t: ordinary(t.detach()).to(device, non_blocking=True))
        yield index, raw, reader.read(index, raw)


def _singly(parts: Parts) -> Iterator[tuple[Parts, slice]]:
    """The parts of a batch that the model is to see one after the other, and which samples they are."""
    if not parts.singly or parts.samples == 1:
        yield parts, slice(None)
        return
    for i in range(parts.samples or 0):
        yield parts.rows(slice(i, i + 1)), slice(i, i + 1)


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


class Begun:
    """A loader that has been begun, to look at its first batch; iterated once, it yields that one as well."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader, self._iterator = loader, iter(loader)
        self.first = list(itertools.islice(self._iterator, 1))

    def __iter__(self) -> Iterator[Any]:
        yield from self.first
        self.first = []
        yield from self._iterator

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # TypeError, as of the loader


def head(batch: Any, model: nn.Module, samples_of: SamplesOf | None = None, samples: int = 2) -> Call:
    """What the model is called with for its prediction of a few samples of a batch, on its device.

    Of one, where they come one by one; of all, where they cannot be taken apart (a graph).
    """
    _, _, parts = next(read([batch], model, samples_of))
    return (parts.rows(slice(1 if parts.singly else samples)) if parts.divisible else parts).asked


def example(model: nn.Module, inputs: Any) -> Any:
    """What the model is called with on example inputs; of a batch that it takes whole, to hand on its images to itself,
    these."""
    if not isinstance(inputs, (list, Mapping)):
        return inputs
    call = call_of(model, inputs)
    return call if isinstance(inputs, list) or call is inputs else handed_on(model, inputs) or call


def last_sample(batch: Batch) -> Batch:
    """The batch of its last sample alone: of what has a row or an item per sample the last one."""
    return Batch(batch.index, batch.parts.rows(slice(batch.samples - 1, None)), batch.labels[-1:], batch.number)


def first_samples(batch: Batch, samples: int) -> Batch:
    """The batch of so many samples, or the batch itself where it has no more."""
    if samples >= batch.samples:
        return batch
    return Batch(batch.index, batch.parts.rows(slice(samples)), batch.labels[:samples], batch.number)


def _labels(index: int, labels: Any, samples: int, own: bool) -> Tensor:
    source = "class_of(batch)" if own else "the targets"
    places = "" if own or not _of_places(labels, samples) else ", class_of=lambda batch: batch[1] to compare places"
    hint = (
        ""
        if own
        else f"; pass class_of= to say which class a sample belongs to{places}, or class_of=False (--no-classes) to do "
        "without U"
    )
    if not isinstance(labels, Tensor):
        raise InputError(f"{source} of batch {index} are {describe(labels)}; expected integer labels [samples]{hint}")
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
        raise InputError(
            f"{source} of batch {index} hold the negative label {int(labels.min())}; expected classes from 0 on{hint}"
        )
    return labels


def _of_places(labels: Any, samples: int) -> bool:
    """Whether these are integers for every place of every sample."""
    integers = isinstance(labels, Tensor) and not labels.dtype.is_floating_point and labels.dtype != torch.bool
    return integers and labels.ndim > 1 and len(labels) == samples
