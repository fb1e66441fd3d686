"""Inputs and outputs of any nesting: walking, casting, telling tensors apart, and feeding them to a model."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call_model(model: nn.Module, inputs: Any) -> Any:
    """`model` on inputs: a tuple or list is positional, a mapping is keywords, anything else one argument.

    Caches and lists among them stay as they are: the model is given its own, which it may fill.
    """
    return call_with(model, own(inputs))


def call_with(model: nn.Module, inputs: Any) -> Any:
    """The same with these very objects."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def is_cache(value: object) -> bool:
    """Whether an object is of a class called `…Cache`, whatever it is made of."""
    if type(value).__module__ == "builtins" or isinstance(value, (Tensor, nn.Module, type)):
        return False
    return any(re.search(r"(?<!With)Cache$", kind.__name__) for kind in type(value).__mro__)


def own(inputs: Any) -> Any:
    """The same inputs with lists, dictionaries and caches copied, which a model may write to; tensors outside of caches
    are the same objects."""
    if type(inputs) in (list, tuple):
        return type(inputs)(own(item) for item in inputs)
    if type(inputs) is dict:
        return {key: own(item) for key, item in inputs.items()}
    if not is_cache(inputs):
        return inputs
    return copy.deepcopy(inputs, {id(t): t.detach().clone() for t in tensors_within(inputs)})


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting of tuples, lists and mappings with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested sequences, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def tensors_within(value: Any, caches: bool = True) -> Iterator[Tensor]:
    """Every tensor once, in order, also inside objects of any class; inside caches unless they are left out."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, nn.Module)) or (not caches and is_cache(value)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
            continue
        inner: list[Any] = []
        if isinstance(value, Mapping):
            inner.extend(value.values())
        elif isinstance(value, (tuple, list, set, frozenset)):
            inner.extend(value)
        inner.extend(getattr(value, "__dict__", {}).values())
        inner.extend(getattr(value, s) for s in getattr(type(value), "__slots__", ()) if hasattr(value, s))
        waiting.extend(reversed(inner))


def elements(tensor: Tensor) -> object:
    """Equal for two live tensors if they are the same elements of the same memory."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    memory = tensor.untyped_storage()._cdata
    return memory, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
