"""A copy of a model, ready to be cut in many ways and compared with itself masked, and what it is run on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.cutting import copy_with
from fairkern.compact.descriptors import tensors_of
from fairkern.model.caches import Calls, calls_of, with_loop
from fairkern.model.fused import one_by_one, running_as
from fairkern.model.generation import can_generate
from fairkern.model.nested import call_model, map_tensors
from fairkern.model.process import seed_torch
from fairkern.model.tensors import held_tensors
from fairkern.model.untouched import forget, same_attributes
from fairkern.prove.double import Double, in_double
from fairkern.prove.inputs import vary
from fairkern.prove.states import State, states_of
from fairkern.prove.stir import calibrate, stir
from fairkern.types import Silence, UnitMap

_DRAWS = 5  # of parameters, until something of the inputs arrives in the results
# Relative error above which pruned and masked differ. Float64 carries 1e-15 per operation, a wrong cut shows
# at 1e-3 and more; the coarser types need room for reordered sums (and TF32) through a deep network.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Prepared:
    """A copy of a model, ready to be cut in many ways and compared with itself masked, and what it is run on.

    `lifted`: it is in float64 and asks for coarser types, which it shall not get. `sharing`: no pass writes to its
    parameters, so that what a cut leaves whole need not be copied. `heard`: something of the inputs arrives in what the
    uncut copy gives. `origins`: of a mask; what of the copy the model itself has.
    """

    copy: nn.Module
    inputs: Any
    seed: int
    tolerance: float
    lifted: bool
    states: Sequence[State]
    calls: Calls
    sharing: bool = False
    heard: bool = True
    origins: Mapping[int, Tensor] = field(default_factory=dict)


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """How far apart two results may be that are computed with these, by the coarsest of their dtypes."""
    dtypes = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return max((TOLERANCES.get(dtype, 5e-2) for dtype in dtypes), default=TOLERANCES[torch.float64])


def prepare(model: nn.Module, units: UnitMap, inputs: Any, seed: int) -> Prepared:
    """The first of float64 and own dtypes, varied and given inputs, that a copy can run with."""
    with own_random_state(model), torch.no_grad():
        return _prepared(model, units, inputs, seed)


def _prepared(model: nn.Module, units: UnitMap, inputs: Any, seed: int) -> Prepared:
    own = tolerance_of(held.tensor for held in tensors_of(model))
    problem: Exception | None = None
    for double in (True, False):
        copy, tolerance = _copy(model, double), TOLERANCES[torch.float64] if double else own
        origins = _origins(model, copy) if double else {}
        for attempt in (vary(inputs, seed + 1), inputs):
            cast = map_tensors(attempt, _double) if double else attempt
            for draw in range(_DRAWS):
                try:
                    prepared, results = _drawn(copy, origins, units, cast, seed, draw, tolerance)
                except Exception as error:
                    problem = error
                    break
                problem = None
                if not all(map(_usable, results)):
                    break
                heard = not deaf(results)
                if heard or draw == _DRAWS - 1:
                    return replace(prepared, heard=heard)
    if problem is not None:
        raise problem
    return prepared


def _drawn(
    copy: nn.Module, origins: dict[int, Tensor], units: UnitMap, inputs: Any, seed: int, draw: int, tolerance: float
) -> tuple[Prepared, list[Tensor]]:
    """The copy with parameters drawn for the `draw`-th time, which have no origins any more, and what it gives."""
    for tensor in stir(copy, seed + 2 + 1000 * draw, _choosing(units)):
        origins.pop(id(tensor), None)
    mode = in_double(copy)
    with same_attributes(copy):  # what is cut has not run, as when somebody cuts a model
        with calibrate(copy, seed + 3), mode, running_as(copy, experts_of(units)):
            seed_torch(seed)
            output = call_model(copy, inputs)
        with mode, running_as(copy, experts_of(units)):
            calls, further = onward(copy, inputs, output)
    lifted = isinstance(mode, Double) and mode.needed
    prepared = Prepared(copy, inputs, seed, tolerance, lifted, states_of(copy), calls, origins=origins)
    return prepared, calls.results(output) + further


def onward(model: nn.Module, inputs: Any, output: Any) -> tuple[Calls, list[Tensor]]:
    """How the model is called on, by its own loop where that runs, and what that gives."""
    generates = can_generate(model)
    calls, found = calls_of(model, inputs, output, onward=not generates), list[Tensor]()
    if generates:
        forget(model)
        calls, found, problem = with_loop(calls, model, inputs)
        if problem is not None:
            forget(model)
            output = call_model(model, inputs)
            calls = calls_of(model, inputs, output)
    return calls, found or calls.onward(model, inputs, output)


def _choosing(units: UnitMap) -> frozenset[str]:
    """Vectors beside the matrices of routers, a value per expert."""
    routed = [g for g in units.groups if any(a.silence is Silence.MINUS_INFINITY for a in g.axes)]
    named = (a.axis.tensor for g in routed for a in g.axes if a.axis.tensor in units.shapes)
    return frozenset(name for name in named if math.prod(units.shapes[name]) == max(units.shapes[name]))


def experts_of(units: UnitMap) -> dict[str, Any]:
    """How fused experts run: their kernels know few types and sizes."""
    sites = {s for g in units.groups for tap in g.taps if tap.side.of_experts for s in tap.sites}
    return {site.module: one_by_one for site in sites if site.module not in units.lists}


def deaf(results: Iterable[Tensor]) -> bool:
    """Whether nothing of the inputs arrives in them, as behind a ReLU that lets nothing pass: all samples have the same
    results, or all places of a lone one. Nothing would show a wrong cut."""
    alike = [
        bool((t == (t[:1] if len(t) > 1 else t[..., :1])).all())
        for t in results
        if t.is_floating_point() and t.ndim and (len(t) > 1 or (t.ndim > 2 and t.shape[-1] > 1))
    ]
    return bool(alike) and all(alike)


def _usable(output: Tensor) -> bool:
    return output.numel() == 0 or bool(torch.isfinite(output).any() and not torch.isnan(output).any())


def _copy(model: nn.Module, double: bool) -> nn.Module:
    tensors = tensors_of(model)
    if double:
        tensors = [held for held in tensors if held.tensor.is_floating_point()]
        return copy_with(model, [(held, _double(held.tensor.detach(), copy=True)) for held in tensors]).eval()
    return copy_with(model, []).eval()


def _origins(model: nn.Module, copy: nn.Module) -> dict[int, Tensor]:
    """For parameters of a copy in float64, by `id`: those that they were made of."""
    own = {held.names[0]: held.tensor for held in tensors_of(model)}
    pairs = ((held.tensor, own.get(held.names[0])) for held in tensors_of(copy))
    return {id(tensor): origin.detach() for tensor, origin in pairs if type(origin) is nn.Parameter}


def _double(tensor: Tensor, copy: bool = False) -> Tensor:
    return tensor.to(torch.float64, copy=copy) if tensor.is_floating_point() else tensor


@contextmanager
def own_random_state(model: nn.Module) -> Iterator[None]:
    devices = {tensor.device for tensor in held_tensors(model) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield
