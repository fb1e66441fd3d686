"""Weights that are read from files when they are needed: modules of a model on meta are given theirs for a while."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fairkern.errors import InputError
from fairkern.model.untouched import valueless


class Source(Protocol):
    """Where the values of parameters come from."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> Tensor:
        """The values of a parameter or buffer of the model, on the CPU in memory of their own."""
        ...


class Weights:
    """The parameters and saved buffers of a model on meta, as `source` has them.

    Nothing is held beyond the contexts in which modules are given theirs. A parameter that has several names is read
    once in a context, by the name that the source has. Values get the dtype of the model's own tensor, as
    `load_state_dict` gives it to them.

    Raises InputError where a tensor on meta is in no file: one that is not saved (a table that a constructor computes)
    has to be there with its values, as `parameters_on_meta` leaves it.
    """

    def __init__(self, model: nn.Module, source: Source, device: torch.device | None = None) -> None:
        self._source, self._device = source, device
        self._names: dict[int, list[str]] = defaultdict(list)  # by id of the tensor on meta
        self._held: list[Tensor] = []  # so that no other has the id of one
        for name, tensor in _tensors(model):
            if valueless(tensor):
                self._names[id(tensor)].append(name)
                self._held.append(tensor)
        for tensor in self._held:
            names = self._names[id(tensor)]
            if any(name in source for name in names):
                continue
            if isinstance(tensor, nn.Parameter):
                raise InputError(f"no file has {names[0]}, a parameter of the model; fetch the whole checkpoint again")
            raise InputError(
                f"the buffer {names[0]} has no values, and no file has it; build the model within "
                "fairkern.model.on_meta.parameters_on_meta(), so that what is not saved is computed"
            )

    @contextlib.contextmanager
    def given(self, *modules: nn.Module) -> Iterator[None]:
        """Within, these modules and all that they contain have their weights; those have no gradients."""
        changed: list[tuple[dict[str, Any], str, Tensor]] = []
        read: dict[int, Tensor] = {}
        try:
            for module in dict.fromkeys(inner for outer in modules for inner in outer.modules()):
                kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for held in kinds:
                    for name, tensor in held.items():
                        if tensor is None or id(tensor) not in self._names:
                            continue
                        if id(tensor) not in read:
                            read[id(tensor)] = self._read(tensor)
                        changed.append((held, name, tensor))
                        held[name] = read[id(tensor)]
            yield
        finally:
            for held, name, tensor in changed:
                held[name] = tensor
            read.clear()

    @contextlib.contextmanager
    def on_call(self, model: nn.Module, entries: Iterable[str]) -> Iterator[None]:
        """Within, what lies outside of these modules has its weights, and each of these while it is called."""
        outermost: list[str] = []
        for path in sorted(entries, key=lambda p: (p.count("."), p)):
            if not any(path.startswith(f"{outer}.") for outer in outermost):
                outermost.append(path)
        inside = {id(m) for path in outermost for m in model.get_submodule(path).modules()}
        with contextlib.ExitStack() as stack:
            outside = [m for m in model.modules() if id(m) not in inside]
            stack.enter_context(self._given_alone(outside))
            here: dict[nn.Module, list[contextlib.ExitStack]] = defaultdict(list)
            for path in outermost:
                module = model.get_submodule(path)

                def before(module: nn.Module, _: Any) -> None:
                    there = contextlib.ExitStack()
                    here[module].append(there)
                    there.enter_context(self.given(module))

                def after(module: nn.Module, _: Any, __: Any) -> None:
                    here[module].pop().close()

                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
            yield

    def _given_alone(self, modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[None]:
        """`given` for the tensors of these modules' own."""
        shallow = []
        for module in modules:
            holder = nn.Module()
            holder._parameters, holder._buffers = module._parameters, module._buffers
            shallow.append(holder)
        return self.given(*shallow)

    def _read(self, tensor: Tensor) -> Tensor:
        name = next(name for name in self._names[id(tensor)] if name in self._source)
        values = self._source.read(name)
        if values.shape != tensor.shape:
            raise InputError(
                f"{name} has shape {tuple(values.shape)} in the files and {tuple(tensor.shape)} in the model"
            )
        values = values.to(device=self._device, dtype=tensor.dtype)
        return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
