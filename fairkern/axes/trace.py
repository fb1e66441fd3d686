"""Run a model once under a dispatch mode and collect, per ATen operator, what happens to axis positions."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairkern.axes.accepts import notes
from fairkern.axes.fakes import faked
from fairkern.axes.graph import CONSTANT, UNIFORM, ZERO, Fixed, Graph, Production, Source, Track
from fairkern.axes.rules import RULES, Call
from fairkern.axes.rules._call import FunctionCall, ModuleCall
from fairkern.axes.rules.elementwise import pointwise
from fairkern.axes.siblings import follow_siblings
from fairkern.axes.sites import SizeCalls
from fairkern.axes.tracing import Tracing
from fairkern.axes.tracks import Escapes, Tracks
from fairkern.deadline import Deadline
from fairkern.errors import TimeLimitError
from fairkern.model.fused import dense, plain, running_as
from fairkern.model.linear import transposed_linear
from fairkern.model.nested import call_model, elements, tensors_in
from fairkern.model.replacements import in_place
from fairkern.model.tensors import named_tensors
from fairkern.model.untouched import Originals, forget, untouched
from fairkern.model.weight_calls import WeightCall, WeightCalls
from fairkern.types import CallSite

# modules whose input is looked at on entry
SEEN = (nn.Linear, nn.RNNBase, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def _seen(module: nn.Module) -> bool:
    """Whether the module does nothing with its input but contract or normalise it."""
    return isinstance(module, SEEN) or transposed_linear(module)


def trace(model: nn.Module, runs: Sequence[Any], deadline: Deadline) -> Tracing:
    """Trace `model` in eval mode on each of `runs`; once more in train mode if parameters were not reached.

    The model is left as it was: see `untouched`.
    """
    with untouched(model) as originals, faked(model, runs) as runs:
        return _trace(model, runs, originals, deadline)


def _trace(model: nn.Module, runs: Sequence[Any], originals: Originals, deadline: Deadline) -> Tracing:
    names = named_tensors(model)
    graph = Graph()
    dims: dict[str, tuple[np.ndarray | None, ...]] = {}
    by_memory: dict[object, str] = {}
    for name, tensor in names.items():
        twin = by_memory.setdefault(elements(tensor), name)  # tied by memory, not by object
        dims[name] = dims[twin] if twin != name else tuple(graph.new(n) if n > 1 else None for n in tensor.shape)
    tracing = Tracing(graph, dims, frozenset(n for n, _ in model.named_parameters()), deadline)
    tracing.notes.extend(notes(model))
    _couple_recurrent(model, tracing)
    model.eval()
    tracing.experts, others = plain(model, lambda: [call_model(model, inputs) for inputs in runs])
    tracing.notes += [f"{path} looks like fused experts and computes something else" for path in others]
    for i, inputs in enumerate(runs):
        _run(model, inputs, names, tracing, originals, training=False, first=i == 0)
    follow_siblings(model, tracing)
    if _missed(tracing, names):
        model.train()
        try:
            _run(model, runs[0], names, tracing, originals, training=True, first=False)
        except TimeLimitError:
            raise
        except Exception as error:  # a model may refuse to run in train mode; what it hides stays frozen
            first = (str(error).splitlines() or [""])[0]
            tracing.notes.append(f"not traced in train mode: {type(error).__name__}: {first}")
    return tracing


def _couple_recurrent(model: nn.Module, tracing: Tracing) -> None:
    """All layers and directions of a recurrent module have one hidden size: their units go together."""
    names = {id(t): n for n, t in model.named_parameters()}
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            states = [tracing.tensors[names[id(w)]][1] for n, w in module.named_parameters() if "weight_hh" in n]
            hidden = [nodes for nodes in states if nodes is not None]
            for other in hidden[1:]:
                tracing.graph.join(hidden[0], other)


@contextlib.contextmanager
def _plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Recurrent layers as elementary operators, not as one fused call."""
    fused = torch._C._get_mkldnn_enabled()
    try:
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            torch._C._set_mkldnn_enabled(False)
        yield
    finally:
        torch._C._set_mkldnn_enabled(fused)


def _missed(tracing: Tracing, names: Mapping[str, Tensor]) -> bool:
    """Whether a parameter, or a buffer that may go along with units, was not reached in eval mode."""
    wanted = {n for n, t in names.items() if n in tracing.parameters or (t.is_floating_point() and t.numel() > 1)}
    return not wanted <= tracing.reached


def _run(
    model: nn.Module,
    inputs: Any,
    names: dict[str, Tensor],
    tracing: Tracing,
    originals: Originals,
    *,
    training: bool,
    first: bool,
) -> None:
    forget(model)
    tracks = Tracks(tracing.graph)
    by_id = {id(t): n for n, t in names.items()}
    for name, tensor in names.items():
        nodes = tuple(CONSTANT if d is None else d for d in tracing.tensors[name])
        tracks.put(tensor, Track(tuple(tensor.shape), nodes, Source(name, tuple(range(tensor.ndim)))))
    tracks.keep_still(names.values())
    modules = _ModuleStack(model, tracks.of, tracing.experts.keys())
    functions = _Functions(tracing.graph, tracks)
    mode = _Mode(tracing, tracks, by_id, modules, functions, originals, training=training, count_flops=first)
    calls = WeightCalls(names, functions.around)
    sizes = SizeCalls(modules.current, tracks)
    experts = running_as(model, dict.fromkeys(tracing.experts, dense))
    with (
        torch.no_grad(),
        in_place(model),
        _plain_recurrence(model),
        experts,
        modules,
        calls,
        Escapes(tracks),
        sizes,
        mode,
    ):
        output = call_model(model, inputs)
    if not training:
        tracing.size_calls.extend(sizes.by_module(modules.calls))
        tracing.calls |= modules.calls
        tracing.widths.update(modules.widths)
    for tensor in _tensors_of(output):
        tracing.graph.read(tracks.of(tensor))
        for dim in tracks.of(tensor).dims:
            tracing.graph.freeze_output(dim)


def _tensors_of(output: Any) -> Iterator[Tensor]:
    """Every tensor of a model's output, also inside objects of its own classes."""
    seen: set[int] = set()
    waiting = [output]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
            continue
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (tuple, list, set, frozenset)):
            waiting.extend(value)
        waiting.extend(getattr(value, "__dict__", {}).values())
        waiting.extend(getattr(value, s) for s in getattr(type(value), "__slots__", ()) if hasattr(value, s))


class _Mode(TorchDispatchMode):
    def __init__(
        self,
        tracing: Tracing,
        tracks: Tracks,
        by_id: dict[int, str],
        modules: _ModuleStack,
        functions: _Functions,
        originals: Originals,
        *,
        training: bool,
        count_flops: bool,
    ) -> None:
        super().__init__()
        self._tracing, self._tracks, self._by_id = tracing, tracks, by_id
        self._modules, self._functions, self._originals = modules, functions, originals
        self._reached = tracing.reached_training if training else tracing.reached
        self._training, self._count_flops = training, count_flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # the device or layout of a fake tensor
            return func(*args, **(kwargs or {}))
        self._tracing.deadline.check(f"{func._schema.name} in {self._modules.current().site.module or 'the model'}")
        arguments = _bind(func, args, kwargs or {})
        tensors = [t for value in arguments.values() for t in tensors_in(value)]
        written = _written(func, arguments)
        for t in written:
            self._originals.about_to_write(t)
        strides = tensors[0].stride() if func._schema.name.startswith("aten::as_strided") else ()
        before = {id(t): self._tracks.of(t) for t in tensors}  # an operator in place may change its shape
        for track in before.values():
            self._tracing.graph.read(track)
        if func._schema.name.split("::")[1] not in RULES and func._can_decompose():
            with self:  # inference mode shows composite operators whole
                return func.decompose(*args, **(kwargs or {}))
        still = self._tracks.still(tensors)
        known = len(self._tracing.graph.contractions)
        result = func(*args, **(kwargs or {}))
        for t in tensors:
            name = self._by_id.get(id(t))
            if name is not None:
                self._reached.add(name)
        made = list(tensors_in(result))
        self._follow(func, arguments, tensors, before, strides, written, made)
        self._tracks.keep_still(made, still)
        if still:
            found = self._tracing.graph.contractions
            found[known:] = [replace(c, still=True) for c in found[known:]]
        return result

    def _follow(
        self,
        func: Any,
        arguments: dict[str, Any],
        tensors: list[Tensor],
        before: dict[int, Track],
        strides: tuple[int, ...],
        written: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        space, name = func._schema.name.split("::")
        call = Call(
            name=name,
            args=arguments,
            tensors=tensors,
            outputs=outputs,
            graph=self._tracing.graph,
            inside=self._modules.current(),
            function=self._functions.current,
            lookup=lambda t: before[id(t)],
            count_flops=self._count_flops,
            strides=strides,
            training=self._training,
        )
        if not outputs:  # a decision by value, or writes into lists of tensors
            call.freeze_all(f"is read or written whole by {call.where}")
            return
        rule = (RULES.get(f"{name}.{func._overloadname}") or RULES.get(name)) if space == "aten" else None
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = pointwise
        if rule is None:
            if any(call.track(t).tracked for t in tensors):
                call.freeze_all(f"no rule for {func} in {call.inside.site.module or 'the model'}")
                self._tracing.unknown.add(str(func))
            made = [Track.constant(o.shape) for o in outputs]
        else:
            made = rule(call)
        moved = torch.Tag.inplace_view in func.tags  # unsqueeze_, transpose_: nothing is written
        targets = {id(t) for t in written}
        for tensor, track in zip(outputs, made, strict=True):
            if id(tensor) in targets and not moved:
                track = self._write(call, tensor, track)
            self._tracks.put(tensor, track)

    def _write(self, call: Call, tensor: Tensor, made: Track) -> Track:
        """An in-place result. Other views of the same memory must not be left behind with an older meaning."""
        graph, before = call.graph, call.track(tensor)
        if before.source is not None:
            for dim in (*before.dims, *made.dims):
                graph.freeze(dim, f"{before.source.name} is written to by {call.where}")
            return before
        known = before.dims if before.sizes == made.sizes else (CONSTANT,) * len(made.dims)
        gained = [
            m
            for m, b in zip(made.dims, known, strict=True)
            if isinstance(m, np.ndarray) and not isinstance(b, np.ndarray)
        ]
        if gained or not before.tracked:
            for other, track in self._tracks.aliases(tensor):
                for dim in gained:
                    graph.freeze(dim, f"is written into a view of an untracked tensor by {call.where}")
                if any(d is UNIFORM or d is ZERO for d in track.dims):
                    dims = tuple(CONSTANT if isinstance(d, Fixed) else d for d in track.dims)
                    self._tracks.put(other, Track(track.sizes, dims, track.source))
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


def _written(func: Any, arguments: Mapping[str, Any]) -> list[Tensor]:
    return [
        t
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write
        for t in tensors_in(arguments[a.name])
    ]


class _Functions:
    """Which function call is under way that is given a weight and an activation."""

    def __init__(self, graph: Graph, tracks: Tracks) -> None:
        self._graph, self._tracks = graph, tracks
        self.current: FunctionCall | None = None

    def around(self, call: WeightCall, run: Callable[[Mapping[int, Tensor]], Any]) -> Any:
        self.current = FunctionCall(call.numbers, tuple(self._tracks.of(t) for t in call.given))
        known = len(self._graph.productions)
        try:
            result = run({})
        finally:
            self.current = None
        self._graph.productions[known:] = [
            p for p in self._graph.productions[known:] if not p.site.weight or self._returns(result, p)
        ]
        return result

    def _returns(self, result: Any, made: Production) -> bool:
        """Whether the function returns what was made in it, in the dimension that was said."""
        if not isinstance(result, Tensor):
            return False
        dims = self._tracks.of(result).dims
        dim = dims[made.dim] if -len(dims) <= made.dim < len(dims) else None
        return isinstance(dim, np.ndarray) and np.array_equal(dim, made.nodes)


class _ModuleStack:
    """Which module call is innermost, and what it was given. Hooks live only inside the context."""

    def __init__(self, model: nn.Module, lookup: Callable[[Tensor], Track], experts: Collection[str]) -> None:
        self._model, self._lookup, self._experts = model, lookup, experts
        self._stack: list[ModuleCall] = [ModuleCall(CallSite(""), None, None)]
        self.calls: Counter[str] = Counter()  # by module path
        self.widths: dict[str, int] = {}
        self._handles = contextlib.ExitStack()

    def current(self) -> ModuleCall:
        return self._stack[-1]

    def __enter__(self) -> _ModuleStack:
        for path, module in self._model.named_modules():
            self._add(path, module)
        return self

    def _add(self, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = list(tensors_in([*args, *kwargs.values()]))
            fused = path in self._experts
            seen = self._lookup(given[0]) if given and (fused or _seen(module)) else None
            slots = next(t.shape[-1] for t in given if not t.is_floating_point()) if fused else None
            self._stack.append(ModuleCall(CallSite(path, self.calls[path]), module, seen, slots))
            self.calls[path] += 1

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()
            if isinstance(output, Tensor) and output.ndim:
                self.widths[path] = output.shape[-1]

        before = module.register_forward_pre_hook(enter, with_kwargs=True)
        self._handles.callback(before.remove)
        after = module.register_forward_hook(leave, always_call=True)
        self._handles.callback(after.remove)

    def __exit__(self, *_: object) -> None:
        self._handles.close()
