"""Run a model on its example inputs and collect what happens to axis positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.axes.accepts import notes
from fairkern.axes.calls import FunctionCalls, ModuleCalls
from fairkern.axes.dims import CONSTANT, Source, Track
from fairkern.axes.fakes import faked
from fairkern.axes.flow import Flow
from fairkern.axes.graph import Graph
from fairkern.axes.kinds import OUTPUT
from fairkern.axes.looking import read_any
from fairkern.axes.mode import OperatorMode
from fairkern.axes.siblings import follow_siblings
from fairkern.axes.size_calls import SizeCalls
from fairkern.axes.smaller import runs_alike, smaller
from fairkern.axes.tracing import Tracing
from fairkern.axes.tracks import Escapes, Tracks
from fairkern.axes.unless import Unless
from fairkern.deadline import Deadline
from fairkern.errors import TimeLimitError
from fairkern.model.autocast import forget_casts
from fairkern.model.caches import Calls, calls_of, given_states, with_loop
from fairkern.model.fused import dense, plain, running_as
from fairkern.model.nested import call_model, call_with, elements, own, tensors_in
from fairkern.model.raised import in_words
from fairkern.model.replacements import in_place
from fairkern.model.tensors import named_tensors
from fairkern.model.untouched import Originals, forget, untouched, valueless
from fairkern.model.weight_calls import WeightCalls
from fairkern.types import Axis


def trace(
    model: nn.Module,
    runs: Sequence[Any],
    deadline: Deadline,
    unused: frozenset[str] = frozenset(),
    *,
    sites: bool = True,
    depth: bool = False,
) -> Tracing:
    """Trace `model` in eval mode on each of `runs`; once more in train mode if parameters were not reached.

    `unused`: parameters that no input reaches, as the caller says; nothing is looked for there. `sites`: whether to
    write down the sizes that modules' code passes on, which only a proof can tell the use of. `depth`: whether to write
    down which value is made of which, by which branches are found.

    The model is left as it was: see `untouched`.
    """
    with untouched(model) as originals, faked(model, runs) as runs:
        return _trace(model, runs, originals, deadline, unused, sites, depth)


def _trace(
    model: nn.Module,
    runs: Sequence[Any],
    originals: Originals,
    deadline: Deadline,
    unused: frozenset[str],
    sites: bool,
    depth: bool,
) -> Tracing:
    names = named_tensors(model)
    graph = Graph()
    dims: dict[str, tuple[np.ndarray | None, ...]] = {}
    by_memory: dict[object, str] = {}
    for name, tensor in names.items():
        twin = by_memory.setdefault(elements(tensor), name)  # tied by memory, not by object
        dims[name] = dims[twin] if twin != name else tuple(graph.new(n) if n > 1 else None for n in tensor.shape)
    parameters = frozenset(n for n, _ in model.named_parameters())
    tracing = Tracing(graph, dims, parameters, deadline, unused=unused, sites=sites, depth=depth)
    tracing.notes.extend(notes(model))
    _couple_recurrent(model, tracing)
    model.eval()
    tracing.fused, others = plain(model, lambda: [call_model(model, inputs) for inputs in runs])
    tracing.notes += [f"{path} looks like fused experts and computes something else" for path in others]
    called = []
    for i, inputs in enumerate(runs):
        small = smaller(inputs) if sites and not tracing.fused and not any(map(valueless, names.values())) else None
        tracing.steps = None if small is None else []
        called.append(_run(model, inputs, names, tracing, originals, first=i == 0))
        if tracing.steps is not None:
            alike = not called[i].goes_on and runs_alike(model, small, tracing.steps, names)
            tracing.places.update(n for step in tracing.steps for n in step.places)
            tracing.smaller.append(small if alike else inputs)
        tracing.steps = None
    follow_siblings(model, tracing)
    missed = _missed(tracing, names)
    if missed:
        model.train()
        try:
            if not tracing.parameters.isdisjoint(missed) or read_any(model, runs[0], missed, originals):
                _run(model, runs[0], names, tracing, originals, training=called[0])
        except TimeLimitError:
            raise
        except Exception as error:  # a model may refuse to run in train mode; what it hides stays frozen
            tracing.training = False
            tracing.notes.append(f"not traced in train mode: {in_words(error, model)}")
    return tracing


def _couple_recurrent(model: nn.Module, tracing: Tracing) -> None:
    """All layers and directions of a recurrent module have one hidden size: their units go together."""
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    if recurrent:
        names = {id(t): n for n, t in model.named_parameters()}
        for module in recurrent:
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


def _missed(tracing: Tracing, names: Mapping[str, Tensor]) -> set[str]:
    """Parameters, and buffers that may go along with units, that were not reached in eval mode."""
    wanted = {n for n, t in names.items() if n in tracing.parameters or (t.is_floating_point() and t.numel() > 1)}
    return wanted - tracing.unused - tracing.reached


def _run(
    model: nn.Module,
    inputs: Any,
    names: dict[str, Tensor],
    tracing: Tracing,
    originals: Originals,
    *,
    training: Calls | None = None,
    first: bool = False,
) -> Calls:
    """One call of the model on example inputs. Returns how it can be called on from there.

    `training`: the run is in train mode, and that is what eval mode said.
    """
    forget(model)
    forget_casts()  # what a model's own autocast made of weights in another run has no track
    inputs = own(inputs)
    in_training = training is not None
    tracks = Tracks(tracing.graph)
    for tensor in tensors_in(inputs):
        tracks.of(tensor)
    flow = Flow(tracks) if tracing.depth and not in_training else None
    with _watched(model, names, tracing, originals, tracks, flow, training=in_training, count_flops=first) as modules:
        for name, tensor in given_states(model, inputs):
            reason = f"is held by {name}, a state that was given as example input"
            held = tuple(tracing.graph.frozen(n, reason) if n > 1 else CONSTANT for n in tensor.shape)
            tracks.put(tensor, Track(tuple(tensor.shape), held))
        output = call_with(model, inputs)
    if training is None:
        tracing.calls |= modules.calls
        tracing.slots = {path: max(n, tracing.slots.get(path, 0)) for path, n in modules.slots.items()}
        tracing.picked |= modules.picked
        tracing.widths.update(modules.widths)
    calls = calls_of(model, inputs, output) if training is None else training
    _freeze_results(calls.results(output), tracks)
    if flow is not None:
        flow.results.update(flow.value(tensor) for tensor in calls.results(output))
        tracing.flows.append(flow)
    if training is None:
        _go_on(calls, output, model, inputs, names, tracing, originals, tracks)
    return calls


def _go_on(
    calls: Calls,
    output: Any,
    model: nn.Module,
    inputs: Any,
    names: dict[str, Tensor],
    tracing: Tracing,
    originals: Originals,
    tracks: Tracks,
) -> None:
    """A further call, with the state in `output`, else the model's own loop: what is read there is not what a pass
    scores."""
    if not calls.step:
        calls, _, problem = with_loop(calls, model, inputs)
        if problem is not None:
            tracing.notes.append(f"generate() does not run on the example inputs: {problem}")
    if not calls.goes_on:
        return
    if not calls.step:
        forget(model)
    graph = tracing.graph
    contractions, productions = len(graph.contractions), len(graph.productions)
    with _watched(model, names, tracing, originals, tracks):
        results = calls.onward(model, inputs, output)
    _freeze_results(results, tracks)
    graph.contractions[contractions:] = [replace(c, training=True) for c in graph.contractions[contractions:]]
    del graph.productions[productions:]


def _freeze_results(results: Iterable[Tensor], tracks: Tracks) -> None:
    for tensor in results:
        tracks.graph.read(tracks.of(tensor))
        for dim in tracks.of(tensor).dims:
            tracks.graph.freeze(dim, OUTPUT, Unless.NEVER)


@contextlib.contextmanager
def _watched(
    model: nn.Module,
    names: dict[str, Tensor],
    tracing: Tracing,
    originals: Originals,
    tracks: Tracks,
    flow: Flow | None = None,
    *,
    training: bool = False,
    count_flops: bool = False,
) -> Iterator[ModuleCalls]:
    """Inside, what the model does is written down."""
    by_id = {id(t): n for n, t in names.items()}
    for name, tensor in names.items():
        nodes = tuple(CONSTANT if d is None else d for d in tracing.tensors[name])
        source = Source(name, tuple(Axis(name, i) for i in range(tensor.ndim)), name in tracing.parameters)
        tracks.put(tensor, Track(tuple(tensor.shape), nodes, source))
    tracks.keep_still(names.values())
    if flow is not None:
        flow.hold(names)
    modules = ModuleCalls(model, tracks, tracing.scopes, tracing.fused.keys(), flow)
    functions = FunctionCalls(tracing.graph, tracks)
    mode = OperatorMode(
        tracing,
        tracks,
        by_id,
        names.values(),
        modules,
        functions,
        originals,
        training=training,
        count_flops=count_flops,
        flow=flow,
    )
    calls = WeightCalls(names, functions.around)
    sizes = SizeCalls(modules.current, tracks) if tracing.sites and not training else None
    experts = running_as(model, dict.fromkeys(tracing.fused, dense))
    with (
        torch.no_grad(),
        in_place(model),
        _plain_recurrence(model),
        experts,
        modules,
        calls,
        Escapes(tracks),
        sizes or contextlib.nullcontext(),
        mode,
    ):
        yield modules
    tracing.graph.join_parts()
    if sizes is not None:
        tracing.graph.size_calls.extend(sizes.by_module(modules.calls, tracing.fused))
