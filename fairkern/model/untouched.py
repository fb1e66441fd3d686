"""Leave a model and the process as they were found, whatever the model's forward pass does."""

from __future__ import annotations

import contextlib
import dis
import functools
import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.model.autocast import forget_casts
from fairkern.model.filled import filled_buffers
from fairkern.model.names import speaks_of_state
from fairkern.model.nested import elements


class Originals:
    """Parameters as they were before a forward pass wrote to them: copied on the first write only."""

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.layout is torch.strided and not valueless(parameter):
                self._owners.setdefault(_memory(parameter), []).append(parameter)
        self._saved: list[tuple[nn.Parameter, Tensor]] = []

    def about_to_write(self, tensor: Tensor) -> None:
        """Call before an operator writes to `tensor`, which may be a view of a parameter."""
        if self._owners and tensor.layout is torch.strided:
            for parameter in self._owners.pop(_memory(tensor), ()):
                self._saved.append((parameter, parameter.detach().clone()))

    def put_back(self) -> None:
        with torch.no_grad():
            for parameter, saved in self._saved:
                parameter.copy_(saved)
        if self._saved:
            forget_casts()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Originals]:
    """Put back modes, attributes, buffers, parameters, gradients, random state and the attention fast path.

    Buffers are copied beforehand (some operators write to running statistics without saying so), parameters when they
    are written to.
    """
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    originals = Originals(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    generators = (random.getstate(), np.random.get_state())  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), same_attributes(model), same_grads(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield originals
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002
            for parameter, data, wanted in parameters:
                if elements(parameter) != elements(data):
                    parameter.data = data
                parameter.requires_grad_(wanted)
            originals.put_back()
            with torch.no_grad():
                for buffer, saved in buffers:
                    if not valueless(buffer) and not torch.equal(buffer, saved):
                        buffer.resize_(saved.shape).copy_(saved)  # an observer's first range has a length of its own


@contextlib.contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Put attributes of every module back to the objects that they held, and lists, dictionaries and sets among them to
    what these held, so that a forward which caches, counts or replaces its modules leaves no trace."""
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    collections = [
        (value, value.copy())
        for _, held in attributes
        for value in held.values()
        if type(value) in (list, dict, OrderedDict, set)
    ]
    try:
        yield
    finally:
        for module, held in attributes:
            module.__dict__.clear()
            module.__dict__.update(held)
        for value, items in collections:
            _refill(value, items)


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


def _refill(value: Any, items: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(items)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
