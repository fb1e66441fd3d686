"""Run a model on its example inputs and collect what happens to axis positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.axes.accepts import notes
from fairkern.axes.calls import FunctionCalls, ModuleCalls
from fairkern.axes.dims import CONSTANT, Source, Track
from fairkern.axes.facts import Unless
from fairkern.axes.fakes import faked
from fairkern.axes.graph import Graph
from fairkern.axes.kinds import OUTPUT
from fairkern.axes.mode import OperatorMode
from fairkern.axes.siblings import follow_siblings
from fairkern.axes.size_calls import SizeCalls
from fairkern.axes.tracing import Tracing
from fairkern.axes.tracks import Escapes, Tracks
from fairkern.deadline import Deadline
from fairkern.errors import TimeLimitError
from fairkern.model.fused import dense, plain, running_as
from fairkern.model.nested import call_model, elements, tensors_in
from fairkern.model.raised import in_words
from fairkern.model.replacements import in_place
from fairkern.model.tensors import named_tensors
from fairkern.model.untouched import Originals, forget, untouched
from fairkern.model.weight_calls import WeightCalls
from fairkern.types import Axis


def trace(model: nn.Module, runs: Sequence[Any], deadline: Deadline, unused: frozenset[str] = frozenset()) -> Tracing:
    """Trace `model` in eval mode on each of `runs`; once more in train mode if parameters were not reached.

    `unused`: parameters that no input reaches, as the caller says; nothing is looked for there.

    The model is left as it was: see `untouched`.
    """
    with untouched(model) as originals, faked(model, runs) as runs:
        return _trace(model, runs, originals, deadline, unused)


def _trace(
    model: nn.Module, runs: Sequence[Any], originals: Originals, deadline: Deadline, unused: frozenset[str]
) -> Tracing:
    names = named_tensors(model)
    graph = Graph()
    dims: dict[str, tuple[np.ndarray | None, ...]] = {}
    by_memory: dict[object, str] = {}
    for name, tensor in names.items():
        twin = by_memory.setdefault(elements(tensor), name)  # tied by memory, not by object
        dims[name] = dims[twin] if twin != name else tuple(graph.new(n) if n > 1 else None for n in tensor.shape)
    tracing = Tracing(graph, dims, frozenset(n for n, _ in model.named_parameters()), deadline, unused=unused)
    tracing.notes.extend(notes(model))
    _couple_recurrent(model, tracing)
    model.eval()
    tracing.fused, others = plain(model, lambda: [call_model(model, inputs) for inputs in runs])
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
            tracing.training = False
            tracing.notes.append(f"not traced in train mode: {in_words(error, model)}")
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
    return not wanted - tracing.unused <= tracing.reached


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
        source = Source(name, tuple(Axis(name, i) for i in range(tensor.ndim)), name in tracing.parameters)
        tracks.put(tensor, Track(tuple(tensor.shape), nodes, source))
    tracks.keep_still(names.values())
    for tensor in tensors_in(inputs):
        tracks.of(tensor)
    modules = ModuleCalls(model, tracks, tracing.scopes, tracing.fused.keys())
    functions = FunctionCalls(tracing.graph, tracks)
    mode = OperatorMode(
        tracing, tracks, by_id, names.values(), modules, functions, originals, training=training, count_flops=first
    )
    calls = WeightCalls(names, functions.around)
    sizes = SizeCalls(modules.current, tracks)
    experts = running_as(model, dict.fromkeys(tracing.fused, dense))
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
        tracing.graph.size_calls.extend(sizes.by_module(modules.calls))
        tracing.calls |= modules.calls
        tracing.widths.update(modules.widths)
    for tensor in _tensors_of(output):
        tracing.graph.read(tracks.of(tensor))
        for dim in tracks.of(tensor).dims:
            tracing.graph.freeze(dim, OUTPUT, Unless.NEVER)


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
