"""How a batch is made: what the model is called with, how many samples that holds, and which part belongs to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.settings import SamplesOf
from fairkern.errors import InputError
from fairkern.model.nested import Call, as_call, takes_list, tensors_in
from fairkern.model.own_calls import call_of, handed_on
from fairkern.options import whole


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
    apart: bool = True  # whether the targets are not among what the model is called with
    lists: bool = False  # whether lists of tensors hold one for every sample
    singly: bool = False
    hands_on: bool = False
    entangled: bool = False  # whether a batch that the model takes whole has rows that are not those of its samples

    @property
    def divisible(self) -> bool:
        """Whether all that the model is called with has an item or a row for every sample."""
        tensors = [t for t in tensors_in(self.asked) if t.ndim]
        rows = all(len(t) == self.samples and t.layout is torch.strided for t in tensors)
        return self.samples is not None and (self.lists or rows)

    def rows(self, which: slice) -> Parts:
        """These samples alone: of what has an item or a row for every sample. The number of samples must be known."""
        n = self.samples
        assert n is not None
        call, asked = self._of_call(self.call, which, n), self._of_call(self.asked, which, n)
        return replace(
            self, call=call, asked=asked, targets=self._of(self.targets, which, n), samples=len(range(n)[which])
        )

    def _of_call(self, call: Call, which: slice, n: int) -> Call:
        if isinstance(call, Mapping):
            return {key: self._of(value, which, n) for key, value in call.items()}
        return tuple(self._of(value, which, n) for value in call)

    def _of(self, value: Any, which: slice, n: int) -> Any:
        if isinstance(value, Tensor):
            return value[which] if value.ndim and len(value) == n and value.layout is torch.strided else value
        if isinstance(value, Mapping):
            return {key: self._of(item, which, n) for key, item in value.items()}
        if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
            return value
        if len(value) == n and (
            _each(value, Mapping) or (self.lists and isinstance(value, list) and self._items(value))
        ):
            return value[which]
        return type(value)(self._of(item, which, n) for item in value)

    def _items(self, value: list[Any]) -> bool:
        """Whether tensors of a list are one for every sample, and do not hold a row for each instead."""
        return _each(value, Tensor) and (self.singly or _common(value) != len(value))


class Reader:
    """Reads batches for a model, and learns with the first how it takes a list and what it hands on to itself."""

    def __init__(self, model: nn.Module, samples_of: SamplesOf | None = None) -> None:
        self._model, self._samples_of = model, samples_of
        self._learned = self._hands_on = False
        self._key: Any = None  # of what it hands on to itself
        self._whole: bool | None = None  # whether it takes lists whole, where its signature does not say

    def read(self, index: int, raw: Any) -> Parts:
        """A batch as the loader gives it, on the model's device: `(inputs, targets)`, a mapping, a list of them.

        Raises InputError for what is none of these, or holds no tensor.
        """
        inputs: Any = raw
        records = _records(raw)
        if isinstance(raw, Mapping):
            call, targets = call_of(self._model, raw), raw.get("labels", raw)
        elif records:
            call, targets = (list(raw),), raw
        elif isinstance(raw, (tuple, list)) and len(raw) == 2:
            inputs, targets = raw
            call, targets = self._call(inputs, targets)
        else:
            raise InputError(
                f"batch {index} is {describe(raw)}; expected (inputs, targets), a dict of keyword arguments, or "
                "a dict for every sample"
            )
        first = next(tensors_in(inputs), None)
        if first is None or (first.ndim == 0 and not records):
            what = describe(raw) if inputs is raw else f"{describe(inputs)}, in {describe(raw)}"
            raise InputError(f"batch {index} holds no tensor of samples in its inputs ({what}); give tensors")
        asked, hands_on = self._asked(call)
        made = Parts(call, asked, targets, None, apart=inputs is not raw, hands_on=hands_on)
        given = None if self._samples_of is None else self._given(index, raw)
        return _counted(made, given)

    def _given(self, index: int, raw: Any) -> int:
        assert self._samples_of is not None
        count = self._samples_of(raw)
        return whole(f"samples_of(batch {index})", count, 0)

    def _call(self, inputs: Any, targets: Any) -> tuple[Call, Any]:
        """What the model is called with, and the targets: samples that are paired with a mapping each go as a list."""
        whole = isinstance(inputs, list) or (isinstance(inputs, tuple) and takes_list(self._model) is not False)
        named = isinstance(targets, (list, tuple)) and _each(targets, Mapping)
        if whole and named and _each(inputs, Tensor) and len(inputs) == len(targets):
            return (list(inputs),), list(targets)
        call = as_call(self._model, inputs)
        if call is None:  # a list
            if self._whole is None:
                tried = call_of(self._model, inputs)
                self._whole = isinstance(tried, tuple) and tried[0] is inputs
            call = (inputs,) if self._whole else tuple(inputs)
        return call, targets

    def _asked(self, call: Call) -> tuple[Call, bool]:
        """What the model is called with for its prediction, and whether it calls itself with that."""
        whole = call[0] if isinstance(call, tuple) and len(call) == 1 else None
        if not isinstance(whole, Mapping):
            return call, False
        if not self._learned:
            inner = handed_on(self._model, whole)
            self._learned, self._hands_on = True, inner is not None
            self._key = next((key for key, value in whole.items() if inner and value is inner[0]), None)
        return call if self._key is None else (whole[self._key],), self._hands_on


def _records(raw: Any) -> bool:
    """Whether this is a mapping for every sample, with all that is known of it; inputs and targets have other keys."""
    listed = isinstance(raw, (tuple, list)) and _each(raw, Mapping)
    return listed and all(item.keys() == raw[0].keys() for item in raw)


def _counted(made: Parts, given: int | None) -> Parts:
    """With the number of samples: what is `given`, else what lists and first dimensions agree on."""
    values = list(_values(made.asked))
    lists = [v for v in values if isinstance(v, list) and (_each(v, Tensor) or _each(v, Mapping))]
    tensors = [v for v in values if isinstance(v, Tensor) and v.ndim]
    if not lists and not tensors:
        tensors = [t for t in tensors_in(values) if t.ndim]
    rows = [len(t) for t in tensors]
    told = {given} if given is not None else _told(made)
    if given is None and lists:
        told |= set(rows) if len(set(rows)) == 1 else set()
        counts = {_of_list(items, told) for items in lists}
        n = counts.pop() if len(counts) == 1 and counts <= (told or counts) else None
    elif given is None:
        beside = {len(v) for v in _values(made.call) if isinstance(v, (list, tuple))}
        n = rows[0] if len(set(rows)) == 1 else _supported(rows, told | beside)
    else:
        n = given
    held = n is not None and any(len(items) == n for items in lists)
    each = held and n not in rows and all(len(items) == n == _of_list(items, told) for items in lists)
    singly = each and n is not None and all(_splits(value, n) for value in (*values, made.targets))
    whole = isinstance(made.asked, tuple) and len(made.asked) == 1 and isinstance(made.asked[0], Mapping)
    entangled = whole and n is not None and not all(_splits(value, n) for value in values)
    return replace(made, samples=n, lists=held, singly=singly, entangled=entangled)


def _splits(value: Any, n: int) -> bool:
    """Whether all tensors here are of one sample or have a row for each: nothing is for the batch as a whole."""
    if isinstance(value, Tensor):
        return value.ndim == 0 or len(value) == n
    if isinstance(value, Mapping):
        return all(_splits(item, n) for item in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) == n or all(_splits(item, n) for item in value)
    return True


def _told(made: Parts) -> set[int]:
    """How many samples the targets, and lists of a mapping for each, are for."""
    mapped = {len(v) for v in _values(made.asked) if isinstance(v, (list, tuple)) and _each(v, Mapping)}
    return mapped | ({n} if (n := _of_targets(made.targets)) is not None else set())


def _values(call: Call) -> Iterable[Any]:
    """What a model is given, argument by argument, a mapping among them item by item."""
    for value in call.values() if isinstance(call, Mapping) else call:
        yield from value.values() if isinstance(value, Mapping) else (value,)


def _of_targets(targets: Any) -> int | None:
    """How many samples targets are for, where they say: rows of a tensor, a list of mappings or of other sizes."""
    if isinstance(targets, Tensor):
        return len(targets) if targets.ndim else None
    listed = isinstance(targets, (list, tuple)) and (
        _each(targets, Mapping) or (_each(targets, Tensor) and _common(targets) is None)
    )
    return len(targets) if listed else None


def _of_list(items: list[Any], told: set[int]) -> int | None:
    """How many samples a list holds: one each or, of tensors, a row of every one for each."""
    rows = _common(items) if _each(items, Tensor) else None
    if rows is None or len(items) in told or rows == len(items):
        return len(items)
    return rows if rows in told else None


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
