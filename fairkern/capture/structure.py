"""How a batch is made: what the model is called with, how many samples that holds, and which part belongs to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fairkern.capture.settings import SamplesOf
from fairkern.errors import InputError
from fairkern.model.nested import Call, as_call, takes_list, tensors_in
from fairkern.model.own_calls import handed_on


@dataclass(frozen=True)
class Parts:
    """A batch as its model is called with it.

    `call` for the loss where no loss function is given, `asked` for a prediction: the same, unless the model takes a
    whole batch and hands on a part of it to itself (`hands_on`). `samples`: None where the structure does not say.
    `singly`: the samples are in lists alone, so that their sizes may differ.
    """

    call: Call
    asked: Call
    targets: Any
    samples: int | None
    lists: bool = False  # whether lists of tensors hold one for every sample
    singly: bool = False
    hands_on: bool = False

    def rows(self, which: slice) -> Parts:
        """These samples alone: of what has an item or a row for every sample. The number of samples must be known."""
        n = self.samples
        assert n is not None
        call, asked = self._of_call(self.call, which, n), self._of_call(self.asked, which, n)
        return replace(self, call=call, asked=asked, targets=self._of(self.targets, which, n), samples=len(range(n)[which]))

    def _of_call(self, call: Call, which: slice, n: int) -> Call:
        if isinstance(call, Mapping):
            return {key: self._of(value, which, n) for key, value in call.items()}
        return tuple(self._of(value, which, n) for value in call)

    def _of(self, value: Any, which: slice, n: int) -> Any:
        if isinstance(value, Tensor):
            return value[which] if value.ndim and len(value) == n else value
        if isinstance(value, Mapping):
            return {key: self._of(item, which, n) for key, item in value.items()}
        if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
            return value
        if len(value) == n and (_each(value, Mapping) or (self.lists and isinstance(value, list) and self._items(value))):
            return value[which]
        return type(value)(self._of(item, which, n) for item in value)

    def _items(self, value: list[Any]) -> bool:
        """Whether tensors of a list are one for every sample, and do not hold a row for each instead."""
        return _each(value, Tensor) and (self.singly or _common(value) != len(value))


class Reader:
    """Reads batches for a model; learns with the first whether the model hands on a part of a whole batch to itself."""

    def __init__(self, model: nn.Module, samples_of: SamplesOf | None = None) -> None:
        self._model, self._samples_of = model, samples_of
        self._learned, self._key = False, None

    def read(self, index: int, raw: Any) -> Parts:
        """A batch as the loader gives it, on the model's device.

        Raises InputError for what is neither `(inputs, targets)` nor a mapping, or holds no tensor.
        """
        if isinstance(raw, Mapping):
            inputs, targets = raw, raw.get("labels", raw)
            call = as_call(self._model, raw)
        elif isinstance(raw, (tuple, list)) and len(raw) == 2:
            inputs, targets = raw
            call, targets = _call(self._model, inputs, targets)
        else:
            raise InputError(
                f"batch {index} is {describe(raw)}; expected (inputs, targets) or a dict of keyword arguments"
            )
        first = next(tensors_in(inputs), None)
        if first is None or first.ndim == 0:
            raise InputError(f"batch {index} holds no tensor of samples in its inputs ({describe(raw)})")
        asked, hands_on = self._asked(call)
        made = Parts(call, asked, targets, None, hands_on=hands_on)
        given = None if self._samples_of is None else self._given(index, raw)
        return _counted(made, given)

    def _given(self, index: int, raw: Any) -> int:
        assert self._samples_of is not None
        count = self._samples_of(raw)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InputError(f"samples_of(batch) of batch {index} is {count!r}; expected a number of samples")
        return count

    def _asked(self, call: Call) -> tuple[Call, bool]:
        """What the model is called with for its prediction, and whether it calls itself with that."""
        whole = call[0] if isinstance(call, tuple) and len(call) == 1 else None
        if not isinstance(whole, Mapping):
            return call, False
        if not self._learned:
            inner = handed_on(self._model, whole)
            self._learned = True
            self._key = next((k for k, v in whole.items() if inner and v is inner[0]), None)
        return ((whole[self._key],), True) if self._key is not None else (call, False)


def _call(model: nn.Module, inputs: Any, targets: Any) -> tuple[Call, Any]:
    """What the model is called with, and the targets: samples that are paired with a mapping each go as a list."""
    paired = isinstance(inputs, (list, tuple)) and isinstance(targets, (list, tuple)) and len(inputs) == len(targets)
    if paired and _each(targets, Mapping) and _each(inputs, Tensor):
        if isinstance(inputs, list) or takes_list(model) is not False:
            return (list(inputs),), list(targets)
    if isinstance(inputs, list) and takes_list(model) is None and isinstance(targets, Tensor) and targets.ndim:
        rows = _common(inputs) if _each(inputs, Tensor) else None
        if (rows == len(targets)) != (len(inputs) == len(targets)):  # items for every sample, or rows for every one
            return (tuple(inputs) if rows == len(targets) else (inputs,)), targets
    return as_call(model, inputs), targets


def _counted(made: Parts, given: int | None) -> Parts:
    """With the number of samples: what is `given`, else what lists and first dimensions agree on."""
    values = list(_values(made.asked))
    lists = [v for v in values if isinstance(v, list) and _each(v, Tensor)]
    tensors = [v for v in values if isinstance(v, Tensor) and v.ndim]
    if not lists and not tensors:
        tensors = [t for t in tensors_in(values) if t.ndim]
    mapped = [len(v) for v in values if isinstance(v, (list, tuple)) and _each(v, Mapping)]
    rows = {len(t) for t in tensors}
    told = {n for n in (given, _of_targets(made.targets, made.asked)) if n is not None} | set(mapped)
    if lists:
        told |= rows if len(rows) == 1 else set()
        counts = [_of_list(items, {given} if given is not None else told) for items in lists]
        n = counts[0] if len(set(counts)) == 1 and (not told or counts[0] in told) else None
    elif len(rows) == 1:
        n = rows.pop()
    else:
        n = _supported([len(t) for t in tensors], told)
    n = n if given is None else given
    held = n is not None and any(len(items) == n for items in lists)
    singly = held and not any(len(t) == n for t in tensors) and any(_items_of(items, n, told) for items in lists)
    return replace(made, samples=n, lists=held, singly=singly)


def _values(call: Call) -> Iterable[Any]:
    """What a model is given, argument by argument, a mapping among them item by item."""
    for value in call.values() if isinstance(call, Mapping) else call:
        yield from value.values() if isinstance(value, Mapping) else (value,)


def _of_targets(targets: Any, call: Call) -> int | None:
    """How many samples targets are for, where they say: rows of a tensor, mappings in a list, tensors of other sizes."""
    if isinstance(targets, Tensor):
        return len(targets) if targets.ndim else None
    if not isinstance(targets, (list, tuple)) or not targets:
        return None
    if _each(targets, Mapping) or (_each(targets, Tensor) and _common(targets) is None):
        return len(targets)
    return None


def _of_list(items: list[Tensor], told: set[int]) -> int | None:
    """How many samples a list of tensors holds: one each, or a row of every one for each."""
    rows = _common(items)
    if rows is None or len(items) in told or rows == len(items):
        return len(items)
    return rows if rows in told else None


def _items_of(items: list[Tensor], n: int | None, told: set[int]) -> bool:
    return len(items) == n and _of_list(items, told) == n


def _supported(rows: list[int], told: set[int]) -> int | None:
    """Of first dimensions that differ: the first one's, if another tensor or the targets have it too, else theirs."""
    if not rows:
        return None
    if rows[0] in told or rows.count(rows[0]) > 1:
        return rows[0]
    return next((n for n in rows if n in told), None)


def _common(items: Iterable[Tensor]) -> int | None:
    """The first dimension that tensors share."""
    sizes = {t.shape[:1] for t in items}
    return next(iter(sizes))[0] if len(sizes) == 1 and all(sizes) else None


def _each(items: Any, kind: type) -> bool:
    return bool(items) and all(isinstance(item, kind) for item in items)


def describe(value: Any) -> str:
    """In words, for errors."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
