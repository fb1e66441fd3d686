"""Leave a model and the process as they were found, whatever the model's forward pass does."""

from __future__ import annotations

import contextlib
import dis
import functools
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.model.autocast import forget_casts
from fairkern.model.filled import filled_buffers
from fairkern.model.in_use import at_work
from fairkern.model.names import speaks_of_state
from fairkern.model.nested import elements
from fairkern.model.sharded import put_in_shards
from fairkern.model.tensors import memory_of


class Originals:
    """Parameters as they were before a forward pass wrote to them: copied on the first write only."""

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int | None, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.layout is torch.strided and not valueless(parameter):
                self._owners.setdefault(memory_of(parameter), []).append(parameter)
        self._saved: list[tuple[nn.Parameter, Tensor]] = []

    def about_to_write(self, tensor: Tensor) -> None:
        """Call before an operator writes to `tensor`, which may be a view of a parameter."""
        if self._owners and tensor.layout is torch.strided:
            for parameter in self._owners.pop(memory_of(tensor), ()):
                self._saved.append((parameter, parameter.detach().clone()))

    def put_back(self) -> None:
        with torch.no_grad(), contextlib.ExitStack() as steps:  # each is taken, whatever becomes of the others
            steps.callback(forget_casts)
            for parameter, saved in self._saved:
                steps.callback(parameter.copy_, saved)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Originals]:
    """`unchanged`, and attention runs without its fast path, which hooks and dispatch modes do not see."""
    with unchanged(model) as originals:
        torch.backends.mha.set_fastpath_enabled(False)  # until the turn ends
        yield originals


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[Originals]:
    """Put back modes, attributes, buffers, parameters, gradients, random state and the attention fast path.

    Buffers are copied beforehand (some operators write to running statistics without saying so), parameters when they
    are written to. What cannot be put back does not keep the rest from it: all else is as it was, and the error is
    raised at the end. Signals wait meanwhile, and other threads are refused (`in_use`).
    """
    with (
        at_work(model, "a run"),
        put_in_shards(model),
        same_attributes(model),
        same_grads(model),
        contextlib.ExitStack() as steps,
    ):
        originals = Originals(model)
        for buffer in model.buffers():
            steps.callback(_put_back_values, buffer, buffer.data, buffer.detach().clone())
        steps.callback(originals.put_back)
        for parameter in model.parameters():
            steps.callback(_put_back_parameter, parameter, parameter.data, parameter.requires_grad)
        yield originals


def _put_back_parameter(parameter: nn.Parameter, data: Tensor, wanted: bool) -> None:
    if elements(parameter) != elements(data):
        parameter.data = data
    parameter.requires_grad_(wanted)


def _put_back_values(buffer: Tensor, data: Tensor, saved: Tensor) -> None:
    if valueless(buffer):
        return
    if elements(buffer) != elements(data):
        buffer.data = data  # resized, as an observer's first range is, or other memory
    if not torch.equal(buffer, saved):
        with torch.no_grad():
            buffer.copy_(saved)


@contextlib.contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Put attributes of every module back to the objects that they held, and to what these held: lists, dictionaries,
    sets and queues, also in one another, and the values of tensors. So a forward which caches, counts or replaces its
    modules leaves no trace.

    Only what differs is written: at no time is anything missing that a module holds. Other objects are left alone: they
    may belong to somebody else.
    """
    with contextlib.ExitStack() as steps:
        known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}  # which are no attributes
        for module in model.modules():
            held = module.__dict__
            empty: list[Any] = []  # most collections, as hooks that nobody added
            collections: list[tuple[Any, Any]] = []
            for value in held.values():
                kind = type(value)
                if kind in _EMPTY:
                    if value:
                        _note(value, collections, known)
                    else:
                        empty.append(value)
                elif kind is tuple or isinstance(value, Tensor):
                    _note(value, collections, known)
            steps.callback(_put_back_attributes, held, held.copy(), empty, collections)
        yield


def _note(value: Any, collections: list[tuple[Any, Any]], known: set[int]) -> None:
    """Adds a collection, or a tensor that somebody may write to, and what is in it; `known` has those that were met."""
    if isinstance(value, Tensor):
        if id(value) not in known and value.layout is torch.strided and value.is_leaf and not valueless(value):
            known.add(id(value))
            collections.append((value, (value.data, value.detach().clone())))
        return
    if type(value) is not tuple:
        if id(value) in known:
            return
        known.add(id(value))
        collections.append((value, value.copy() if value else _EMPTY[type(value)]))
    for item in value.values() if isinstance(value, dict) else value:
        if type(item) in _EMPTY or type(item) is tuple or isinstance(item, Tensor):
            _note(item, collections, known)


@contextlib.contextmanager
def same_grads(model: nn.Module) -> Iterator[None]:
    """Put the gradients of all parameters back to the tensors that they were. Within there are none, so that what a
    model or a loss adds that goes backward by itself is gone afterwards."""
    with contextlib.ExitStack() as steps:
        for parameter in model.parameters():
            if parameter.is_leaf:
                steps.callback(setattr, parameter, "grad", parameter.grad)
                parameter.grad = None
        yield


def caches(modules: Iterable[nn.Module]) -> Iterator[dict[Any, Tensor]]:
    """Dictionaries of tensors that these modules keep between runs under a name with "cache" in it: what they hold was
    computed from the weights, and is computed again where it is missing."""
    for module in modules:
        for name, value in vars(module).items():
            if type(value) is dict and value and "cache" in name and all(isinstance(v, Tensor) for v in value.values()):
                yield value


def held_states(modules: Collection[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Attributes in which these modules keep a state from one call to the next: tensors that are neither parameters nor
    buffers, under a name that speaks of a state, where the constructor put None; and buffers that `forward` fills."""
    yield from filled_buffers(modules)
    for module in modules:
        kind: Any = type(module)
        for name in _empty_states(kind):
            if isinstance(vars(module).get(name), Tensor):
                yield module, name


def forget(model: nn.Module) -> None:
    """Empty the caches, and put held states back to None."""
    modules = list(model.modules())
    for cache in caches(modules):
        cache.clear()
    for module, name in list(held_states(modules)):
        setattr(module, name, None)


@functools.cache
def _empty_states(kind: Any) -> tuple[str, ...]:
    """The attributes that a class's constructors set to None, of a name that speaks of a state."""
    found = set()
    for code in (getattr(made.__dict__.get("__init__"), "__code__", None) for made in kind.__mro__):
        value = None
        for step in dis.get_instructions(code) if code is not None else ():
            if step.opname == "STORE_ATTR" and value is not None and value.argval is None:
                found.add(step.argval)
            elif step.opname.startswith("LOAD_CONST"):
                value = step
            elif not step.opname.startswith(("LOAD_FAST", "COPY", "DUP_TOP", "STORE_ATTR")):
                value = None
    return tuple(sorted(filter(speaks_of_state, found)))


def valueless(tensor: Tensor) -> bool:
    """Whether the tensor is on the meta device or fake: it has a shape, but no values."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _put_back_attributes(
    held: dict[str, Any], before: dict[str, Any], empty: list[Any], collections: list[tuple[Any, Any]]
) -> None:
    for value in filter(None, empty):  # none, as a rule
        _refill(value, _EMPTY[type(value)])
    for value, items in collections:
        if isinstance(value, Tensor):
            _put_back_values(value, *items)
        elif value or items:
            _refill(value, items)
    _refill_entries(held, before)


def _refill(value: Any, items: Any) -> None:
    if isinstance(value, list):
        value[:] = items
    elif isinstance(value, deque):
        if any(a is not b for a, b in zip_longest(value, items, fillvalue=value)):
            value.clear()
            value.extend(items)
    elif isinstance(value, set):
        if value != items:  # else it keeps its order, too
            value &= items
            value |= items
    else:
        _refill_entries(value, items)


def _refill_entries(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Give a dictionary the entries that it had, in the order that they had."""
    if len(held) == len(before) and all(map(operator.is_, held.values(), before.values())) and list(held) == [*before]:
        return
    for key in held.keys() - before.keys():
        del held[key]
    for key, value in before.items():
        if key not in held or held[key] is not value:
            held[key] = value
    if list(held) != list(before):
        for key in before:
            held[key] = held.pop(key)


_EMPTY: dict[type, Any] = {kind: kind() for kind in (dict, OrderedDict, defaultdict, Counter, list, set, deque)}
