"""Run a model once under a dispatch mode and collect, per ATen operator, what happens to axis positions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fairkern.axes.graph import CONSTANT, Graph, Source, Track
from fairkern.axes.rules import RULES, Call
from fairkern.axes.rules._call import ModuleCall
from fairkern.axes.rules.elementwise import pointwise
from fairkern.errors import InputError
from fairkern.nested import call_model, tensors_in
from fairkern.types import Site

TAPPED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class Tracing:
    """A finished trace: the graph, the nodes of every parameter and buffer, and what was not reached."""

    graph: Graph
    tensors: dict[str, tuple[np.ndarray | None, ...]]  # name -> nodes per dimension (None: size 0 or 1)
    parameters: frozenset[str]
    reached: set[str] = field(default_factory=set)
    reached_training: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)  # operators without a rule that met tracked positions
    notes: list[str] = field(default_factory=list)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer once, by its first name."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    found.update(model.named_buffers())
    return found


def trace(model: nn.Module, runs: Sequence[Any]) -> Tracing:
    """Trace `model` in eval mode on each of `runs`; once more in train mode if parameters were not reached.

    The model is left as it was: modes, buffers and the global random state are put back.
    """
    names = named_tensors(model)
    graph = Graph()
    dims: dict[str, tuple[np.ndarray | None, ...]] = {}
    for name, tensor in names.items():
        dims[name] = tuple(graph.new(n) if n > 1 else None for n in tensor.shape)
    tracing = Tracing(graph, dims, frozenset(n for n, _ in model.named_parameters()))
    with _settings(model):
        model.eval()
        for i, inputs in enumerate(runs):
            _run(model, inputs, names, tracing, training=False, first=i == 0)
        missed = tracing.parameters - tracing.reached
        if missed:
            model.train()
            try:
                _run(model, runs[0], names, tracing, training=True, first=False)
            except Exception as error:  # a model may refuse to run in train mode; what it hides stays frozen
                tracing.notes.append(f"not traced in train mode: {type(error).__name__}: {str(error).splitlines()[0]}")
    return tracing


def _run(
    model: nn.Module, inputs: Any, names: dict[str, torch.Tensor], tracing: Tracing, *, training: bool, first: bool
) -> None:
    tracks: WeakIdKeyDictionary = WeakIdKeyDictionary()
    by_id = {id(t): n for n, t in names.items()}
    for name, tensor in names.items():
        nodes = tuple(CONSTANT if d is None else d for d in tracing.tensors[name])
        tracks[tensor] = Track(tuple(tensor.shape), nodes, Source(name, tuple(range(tensor.ndim))))
    modules = _ModuleStack(model, lambda t: _lookup(tracks, t))
    mode = _Mode(tracing, tracks, by_id, modules, training=training, count_flops=first)
    with torch.no_grad(), modules, mode:
        output = call_model(model, inputs)
    for tensor in tensors_in(output):
        for dim in _lookup(tracks, tensor).dims:
            tracing.graph.freeze(dim, "is a dimension of the model's output")


def _lookup(tracks: WeakIdKeyDictionary, tensor: torch.Tensor) -> Track:
    track = tracks.get(tensor)
    if track is None or track.sizes != tuple(tensor.shape):
        track = Track.constant(tensor.shape)
        tracks[tensor] = track
    return track  # type: ignore[no-any-return]


class _Mode(TorchDispatchMode):
    def __init__(
        self,
        tracing: Tracing,
        tracks: WeakIdKeyDictionary,
        by_id: dict[int, str],
        modules: _ModuleStack,
        *,
        training: bool,
        count_flops: bool,
    ) -> None:
        super().__init__()
        self._tracing, self._tracks, self._by_id, self._modules = tracing, tracks, by_id, modules
        self._reached = tracing.reached_training if training else tracing.reached
        self._training, self._count_flops = training, count_flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        arguments = _bind(func, args, kwargs)
        tensors = [t for value in arguments.values() for t in tensors_in(value)]
        outputs = list(tensors_in(result))
        for t in tensors:
            name = self._by_id.get(id(t))
            if name is not None:
                self._reached.add(name)
        if outputs:
            self._follow(func, arguments, tensors, outputs)
        return result

    def _follow(
        self, func: Any, arguments: dict[str, Any], tensors: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        name, overload = func._schema.name.split("::")[-1], func._overloadname
        call = Call(
            name=name,
            args=arguments,
            tensors=tensors,
            outputs=outputs,
            graph=self._tracing.graph,
            inside=self._modules.current(),
            lookup=lambda t: _lookup(self._tracks, t),
            count_flops=self._count_flops,
        )
        rule = RULES.get(f"{name}.{overload}") or RULES.get(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = pointwise
        if rule is None:
            if any(call.track(t).tracked for t in tensors):
                call.freeze_all(f"no rule for {func} in {call.inside.site.module or 'the model'}")
                self._tracing.unknown.add(str(func))
            made = [Track.constant(o.shape) for o in outputs]
        else:
            made = rule(call)
        written = {id(t) for t in _written(func, arguments)}
        for tensor, track in zip(outputs, made, strict=True):
            if id(tensor) in written:
                track = self._write(call, tensor, track)
            self._tracks[tensor] = track

    def _write(self, call: Call, tensor: torch.Tensor, made: Track) -> Track:
        """An in-place result. Other views of the same memory must not be left behind with an older meaning."""
        before = _lookup(self._tracks, tensor)
        if made.tracked and not before.tracked and tensor._is_view():
            for dim in made.dims:
                call.graph.freeze(dim, f"is written into a view of an untracked tensor by {call.where}")
        if before.source is not None:
            for dim in (*before.dims, *made.dims):
                call.graph.freeze(dim, f"{before.source.name} is written to by {call.where}")
            return before
        return made


def _bind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def _written(func: Any, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    return [
        arguments[a.name]
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and isinstance(arguments[a.name], torch.Tensor)
    ]


class _ModuleStack:
    """Which module call is innermost, and what it was given. Hooks live only inside the context."""

    def __init__(self, model: nn.Module, lookup: Callable[[torch.Tensor], Track]) -> None:
        self._model, self._lookup = model, lookup
        self._stack: list[ModuleCall] = [ModuleCall(Site(""), None, None)]
        self._calls: dict[str, int] = {}
        self._handles = contextlib.ExitStack()

    def current(self) -> ModuleCall:
        return self._stack[-1]

    def __enter__(self) -> _ModuleStack:
        for path, module in self._model.named_modules():
            self._add(path, module)
        return self

    def _add(self, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            entry = next(tensors_in([*args, *kwargs.values()]), None)
            seen = self._lookup(entry) if entry is not None and isinstance(module, TAPPED) else None
            self._stack.append(ModuleCall(Site(path, self._calls.get(path, 0)), module, seen))
            self._calls[path] = self._calls.get(path, 0) + 1

        def leave(*_: Any) -> None:
            self._stack.pop()

        before = module.register_forward_pre_hook(enter, with_kwargs=True)
        self._handles.callback(before.remove)
        after = module.register_forward_hook(leave)
        self._handles.callback(after.remove)

    def __exit__(self, *_: object) -> None:
        self._handles.close()


@contextlib.contextmanager
def _settings(model: nn.Module) -> Iterator[None]:
    """Put back modes, buffers, random state and the attention fast path, whatever happens."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, saved in buffers:
                    if not torch.equal(buffer, saved):
                        buffer.copy_(saved)


def check_inputs(model: nn.Module, runs: Sequence[Any]) -> None:
    """InputError where example inputs hold no tensor or lie on another device than the model."""
    devices = {t.device for t in named_tensors(model).values()}
    for inputs in runs:
        found = list(tensors_in(inputs))
        if not found:
            raise InputError(
                f"example inputs hold no tensor (got {type(inputs).__name__}); "
                "give a tensor, a tuple of positional arguments or a dict of keyword arguments"
            )
        for tensor in found:
            if devices and tensor.device not in devices:
                where = ", ".join(sorted(map(str, devices)))
                raise InputError(
                    f"an example input is on {tensor.device}, the model is on {where}; move one to the other"
                )
