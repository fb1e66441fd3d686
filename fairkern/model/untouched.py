"""Leave a model and the process as they were found, whatever the model's forward pass does."""

from __future__ import annotations

import contextlib
import dis
import functools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.model.autocast import forget_casts
from fairkern.model.filled import filled_buffers
from fairkern.model.in_use import at_work
from fairkern.model.names import speaks_of_state
from fairkern.model.nested import elements
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
    """Put back modes, attributes, buffers, parameters, gradients, random state and the attention fast path.

    Buffers are copied beforehand (some operators write to running statistics without saying so), parameters when they
    are written to. What cannot be put back does not keep the rest from it: all else is as it was, and the error is
    raised at the end. Signals wait meanwhile, and other threads are refused (`in_use`).
    """
    with at_work(model, "a run"), same_attributes(model), same_grads(model), contextlib.ExitStack() as steps:
        originals = Originals(model)
        for buffer in model.buffers():
            steps.callback(_put_back_values, buffer, buffer.data, buffer.detach().clone())
        steps.callback(originals.put_back)
        for parameter in model.parameters():
            steps.callback(_put_back_parameter, parameter, parameter.data, parameter.requires_grad)
        torch.backends.mha.set_fastpath_enabled(False)  # until the turn ends
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
    """Put attributes of every module back to the objects that they held, and lists, dictionaries and sets among them to
    what these held, so that a forward which caches, counts or replaces its modules leaves no trace.

    Only what differs is written: at no time is anything missing that a module holds.
    """
    with contextlib.ExitStack() as steps:
        for module in model.modules():
            held = module.__dict__
            inner = [(value, value.copy()) for value in held.values() if type(value) in _REFILLED]
            steps.callback(_put_back, held, held.copy(), inner)
        yield


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
            if "cache" in name and type(value) is dict and value and all(isinstance(v, Tensor) for v in value.values()):
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


def _put_back(held: dict[Any, Any], before: dict[Any, Any], inner: Sequence[tuple[Any, Any]]) -> None:
    """Give a module the attributes that it had, and what its collections held; most of those are empty."""
    try:
        _refill(held, before)
    finally:
        for value, items in inner:
            if value or items:
                _REFILLED[type(value)](value, items)


def _refill(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Give a dictionary the entries that it had, in the order that they had."""
    for key in held.keys() - before.keys():
        del held[key]
    for key, value in before.items():
        if key not in held or held[key] is not value:
            held[key] = value
    if list(held) != list(before):
        for key in before:
            held[key] = held.pop(key)


def _refill_list(held: list[Any], before: list[Any]) -> None:
    held[:] = before


def _refill_set(held: set[Any], before: set[Any]) -> None:
    held &= before
    held |= before


_REFILLED: dict[type, Any] = {dict: _refill, OrderedDict: _refill, list: _refill_list, set: _refill_set}
