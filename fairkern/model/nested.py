"""Inputs and outputs of any nesting: walking, casting, telling tensors apart, and feeding them to a model."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.tensors import memory_of

Call = tuple[Any, ...] | Mapping[str, Any]


def call_model(model: nn.Module, inputs: Any) -> Any:
    """`model` on inputs of any nesting, called as `as_call` says. Raises InputError where that is not known.

    Caches and lists among them stay as they are: the model is given its own, which it may fill.
    """
    return call_with(model, own(inputs))


def call_with(model: nn.Module, inputs: Any) -> Any:
    """The same with these very objects."""
    call = as_call(model, inputs)
    if call is None:
        raise InputError(f"{unclear(model, inputs)}: {TUPLES}")
    return model(**call) if isinstance(call, Mapping) else model(*call)


def as_call(model: nn.Module, inputs: Any) -> Call | None:
    """What `model` is called with: a tuple of positional or a mapping of keyword arguments.

    A tuple is positional, and what is no tuple, list or mapping is the one argument.

    A mapping is keyword arguments; one of which `forward` takes no key by name, but needs exactly one argument, is that
    argument (a batch that the model takes whole).

    A list is the one argument (images of several sizes) where `forward` says in its annotation that its first parameter
    is a list or a sequence, or takes fewer arguments than the list has items. It is positional, as default_collate
    makes lists of tuples, where the annotation says something else or `forward` needs two arguments or more. Else None:
    it is to be tried (`own_calls.call_of`).
    """
    if isinstance(inputs, tuple):
        return inputs
    if isinstance(inputs, Mapping):
        return (inputs,) if _taken_whole(model, inputs) else inputs
    if isinstance(inputs, list):
        whole = _one_argument(model, inputs)
        return None if whole is None else (inputs,) if whole else tuple(inputs)
    return (inputs,)


TUPLES = "pass a tuple, (inputs,) for the one list or tuple(inputs) for several arguments"


def unclear(model: nn.Module, inputs: list[Any]) -> str:
    """In words, what `as_call` does not know."""
    return f"inputs are a list of {len(inputs)}, which {type(model).__name__}.forward could take whole or item by item"


def can_take(model: nn.Module, call: Call) -> bool:
    """Whether `forward` can be called so, by its signature; True where it has none."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(**call) if isinstance(call, Mapping) else signature.bind(*call)
    except TypeError:
        return False
    return True


def takes_list(model: nn.Module) -> bool | None:
    """Whether `forward` says that its first parameter is a list or a sequence; None where it says nothing, or both."""
    positional = [p for p in _parameters(model) if p.kind in _POSITIONAL]
    if not positional or positional[0].annotation is inspect.Parameter.empty:
        return None
    annotation = positional[0].annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    named = {name.split(".")[-1] for name in _alternatives(text)} - {"None", "NoneType"}
    if named & {"Any", "object"} or (named & _SEQUENCES and named - _SEQUENCES):
        return None
    return bool(named & _SEQUENCES)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SEQUENCES = frozenset(["list", "List", "Sequence", "Iterable", "tuple", "Tuple"])


def takes_by_name(model: nn.Module, name: str) -> bool:
    """Whether `forward` has a parameter of that name."""
    return any(p.name == name for p in _parameters(model))


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Of `forward`; none where it has no signature (a scripted module)."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _needed(positional: list[inspect.Parameter]) -> int:
    return sum(p.default is inspect.Parameter.empty for p in positional)


def _taken_whole(model: nn.Module, inputs: Mapping[Any, Any]) -> bool:
    parameters = _parameters(model)
    by_name = {p.name for p in parameters if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return _needed([p for p in parameters if p.kind in _POSITIONAL]) == 1 and by_name.isdisjoint(inputs)


def _one_argument(model: nn.Module, items: list[Any]) -> bool | None:
    parameters = _parameters(model)
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    if not items or (not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        return False
    if not positional:
        return None
    fits = len(items) <= len(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    says = takes_list(model)
    if not fits or says is not None:
        return not fits or (bool(says) and not isinstance(items[0], (list, tuple)))
    return False if _needed(positional) > 1 else None


def _alternatives(annotation: str) -> list[str]:
    """Outermost names of the types that an annotation, as text, allows: `list` for `Optional[list[Tensor]]`."""
    text = annotation.strip().strip("'\"")
    wrapped = re.fullmatch(r"(?:\w+\.)*(?:Optional|Union)\[(.*)\]", text, re.DOTALL)
    depth, parts = 0, [""]
    for sign in wrapped[1] if wrapped else text:
        depth += (sign == "[") - (sign == "]")
        if depth == 0 and sign == ("," if wrapped else "|"):
            parts.append("")
        else:
            parts[-1] += sign
    if wrapped or len(parts) > 1:
        return [name for part in parts for name in _alternatives(part)]
    return [text.split("[")[0].strip()]


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
        return
    if type(value) in _WITHOUT_TENSORS:
        return
    items: Iterable[Any] = ()
    if isinstance(value, (tuple, list)):
        items = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = (getattr(value, field.name) for field in dataclasses.fields(value))
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif type(item) not in _WITHOUT_TENSORS:
            yield from tensors_in(item)


_WITHOUT_TENSORS = frozenset(
    [type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format]
)


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
    memory = memory_of(tensor)
    if memory is None:
        return id(tensor)
    return memory, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
