"""The dispatch mode of a trace: every ATen operator of a run goes to its rule, which says what its results are."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fairkern.axes.calls import FunctionCalls, ModuleCalls
from fairkern.axes.dims import CONSTANT, Fixed, Track
from fairkern.axes.flow import Flow
from fairkern.axes.rules._call import Call
from fairkern.axes.rules.elementwise import pointwise
from fairkern.axes.rules.registry import RULES, Rule
from fairkern.axes.smaller import Step
from fairkern.axes.tracing import Tracing
from fairkern.axes.tracks import Tracks
from fairkern.model.nested import tensors_in
from fairkern.model.operator_mode import UncompiledMode
from fairkern.model.tensors import memory_of
from fairkern.model.untouched import Originals

_DEVICE = torch.ops.prim.device.default
_PICK = frozenset({"aten::index", "aten::index_select"})
_SHOW = frozenset({"aten::_unsafe_view", "aten::_to_copy", "aten::clone"})  # beside views: the same values again


class _Operator(NamedTuple):
    """What is known of an operator by itself."""

    full: str  # "aten::view"
    name: str  # "view"
    defaults: Mapping[str, Any]  # of its arguments, in order
    writes: Sequence[str]  # the arguments that it writes to
    rule: Rule | None
    composite: bool  # of others, where it has no rule
    pointwise: bool
    view: bool
    moves: bool  # as `unsqueeze_`: nothing is written
    strided: bool  # it reads by strides
    picks: bool | None  # places of a tensor; None: if its argument was picked


@functools.cache
def _operator(func: Any, rules: int) -> _Operator:
    """`rules`: how many there are, since users add some of their own after a trace has named what has none."""
    full, view, arguments = func._schema.name, func.is_view, func._schema.arguments
    space, name = full.split("::")
    known = name if space == "aten" else full
    return _Operator(
        full,
        name,
        {a.name: a.default_value for a in arguments},
        [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write],
        RULES.get(f"{known}.{func._overloadname}") or RULES.get(known),
        name not in RULES and func._can_decompose(),
        torch.Tag.pointwise in func.tags or _pointwise_in_place(name),
        view,
        torch.Tag.inplace_view in func.tags,
        full.startswith("aten::as_strided"),
        None if view or full in _SHOW else full in _PICK,
    )


class OperatorMode(UncompiledMode):
    """`held`: the parameters and buffers. `training`: the run in train mode, which only looks for what eval mode did
    not reach."""

    def __init__(
        self,
        tracing: Tracing,
        tracks: Tracks,
        by_id: dict[int, str],
        held: Iterable[Tensor],
        modules: ModuleCalls,
        functions: FunctionCalls,
        originals: Originals,
        *,
        training: bool,
        count_flops: bool,
        flow: Flow | None = None,
    ) -> None:
        super().__init__()
        self._tracing, self._tracks, self._by_id = tracing, tracks, by_id
        self._modules, self._functions, self._originals = modules, functions, originals
        self._memories = {memory for t in held if (memory := memory_of(t)) is not None}
        self._reached = tracing.reached_training if training else tracing.reached
        self._training, self._count_flops, self._flow = training, count_flops, flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].device  # what the operator says, without its way through the dispatcher
        if func.namespace == "prim":  # the device or layout of a fake tensor
            return func(*args, **(kwargs or {}))
        operator, kwargs = _operator(func, len(RULES)), kwargs or {}
        code = self._modules.current().site.module
        self._tracing.deadline.check(f"{operator.full} in {code or 'the model'}")
        arguments = {**operator.defaults, **dict(zip(operator.defaults, args, strict=False)), **kwargs}
        tensors = list(tensors_in(arguments))
        written = [t for name in operator.writes for t in tensors_in(arguments[name])]
        for t in written:
            self._originals.about_to_write(t)
        strides = tensors[0].stride() if operator.strided else ()
        self._tracks.keep_still([t for t in tensors if t not in self._tracks])  # a list of numbers as an index
        before = {id(t): self._tracks.of(t) for t in tensors}  # an operator in place may change its shape
        if not operator.view:  # who looks at the same values in another way has not read them yet
            for track in before.values():
                self._tracing.graph.read(track)
        if operator.composite:
            with self:  # inference mode shows composite operators whole
                return func.decompose(*args, **kwargs)
        still = self._tracks.still(tensors)
        known, counted = len(self._tracing.graph.contractions), len(self._tracing.graph.flops)
        read = None if self._flow is None else self._flow.before(tensors)
        result = func(*args, **kwargs)
        if self._tracing.sites and not self._training:
            self._tracing.operators.setdefault(code, {})[operator.name] = None
        scopes = self._tracing.scopes
        given = [self._by_id[id(t)] for t in tensors if id(t) in self._by_id]
        for name in given:
            self._reached.add(name)
            scopes.uses(code, name)
        made = list(tensors_in(result))
        self._follow(func, operator, arguments, tensors, before, strides, written, made)
        if self._tracing.steps is not None:
            self._tracing.steps.append(Step.of(operator.full, given, [(t, self._tracks.of(t)) for t in made]))
        if self._flow is not None and read is not None:
            flops = (counted, len(self._tracing.graph.flops))
            scaled = arguments.get("alpha", 1) != 1
            self._flow.saw(operator.name, read, written, made, flops, view=operator.view, scaled=scaled)
        unread = [reason for track in before.values() for reason in track.mixed] if operator.view else []
        for t in made if unread else ():
            self._tracks.put(t, replace(self._tracks.of(t), mixed=tuple(unread)))
        scopes.saw(code, (*before.values(), *map(self._tracks.of, made)))
        if self._tracks.picked(tensors) if operator.picks is None else operator.picks:
            self._tracks.pick(made)
        if not still:
            self._tracks.stir(written)
        self._tracks.keep_still(made, still)
        if still:
            found = self._tracing.graph.contractions
            found[known:] = [replace(c, still=True) for c in found[known:]]
        return result

    def _follow(
        self,
        func: Any,
        operator: _Operator,
        arguments: dict[str, Any],
        tensors: list[Tensor],
        before: dict[int, Track],
        strides: tuple[int, ...],
        written: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        call = Call(
            name=operator.name,
            args=arguments,
            tensors=tensors,
            outputs=outputs,
            graph=self._tracing.graph,
            inside=self._modules.current(),
            function=self._functions.current,
            lookup=lambda t: before[id(t)],
            count_flops=self._count_flops,
            strides=strides,
            still=self._tracks.still,
            training=self._training,
        )
        rule = operator.rule
        if not outputs and rule is None:  # a decision by value, or writes into lists of tensors
            call.freeze_all(f"is read or written whole by {call.where}")
            return
        if rule is None and operator.pointwise:
            rule = pointwise
        if rule is None:
            if any(call.track(t).tracked for t in tensors):
                call.freeze_all(f"no rule for {func} in {call.inside.site.module or 'the model'}")
                self._tracing.unknown.add(str(func))
            made = [Track.constant(o.shape) for o in outputs]
        else:
            made = rule(call)
        targets = {id(t) for t in written}
        for tensor, track in zip(outputs, made, strict=True):
            if id(tensor) in targets and not operator.moves:
                track = self._write(call, tensor, track)
            self._tracks.put(tensor, track)

    def _write(self, call: Call, tensor: Tensor, made: Track) -> Track:
        """An in-place result. Other views of the same memory must not be left behind with an older meaning."""
        graph, before = call.graph, call.track(tensor)
        if before.source is not None and memory_of(tensor) in self._memories:
            for dim in (*before.dims, *made.dims):
                graph.freeze(dim, f"{before.source.name} is written to by {call.where}")
            return before
        if before.source is not None or before.factor is not None:
            for other, track in self._tracks.aliases(tensor):
                self._tracks.put(other, replace(track, source=None, factor=None))
        known = before.dims if before.sizes == made.sizes else (CONSTANT,) * len(made.dims)
        gained = {
            i: m
            for i, (m, b) in enumerate(zip(made.dims, known, strict=True))
            if isinstance(m, np.ndarray) and not isinstance(b, np.ndarray)
        }
        if gained or not before.tracked:
            for other, track in self._tracks.aliases(tensor):
                dims = list(track.dims)
                for i, dim in gained.items():
                    at = _same_dim(tensor, i, other)
                    if at is None or dims[at] is CONSTANT:
                        graph.freeze(dim, f"is written into a view of an untracked tensor by {call.where}")
                    else:  # filled with one value along it, so that the whole tensor has these positions from now on
                        dims[at] = graph.meet(dims[at], dim, "")
                dims = [CONSTANT if isinstance(d, Fixed) else d for d in dims]
                if any(new is not old for new, old in zip(dims, track.dims, strict=True)):
                    self._tracks.put(other, replace(track, dims=tuple(dims)))
        return made


def _same_dim(view: Tensor, dim: int, other: Tensor) -> int | None:
    """The dimension of `other` whose positions are those of this dimension of a view of the same memory; None if no
    dimension is."""
    length, stride = view.shape[dim], int(view.stride(dim))
    if stride == 0 or abs(int(view.storage_offset()) - int(other.storage_offset())) // stride % length:
        return None
    return next((i for i, n in enumerate(other.shape) if n == length and other.stride(i) == stride), None)


def _pointwise_in_place(name: str) -> bool:
    """Whether this is `abs_` and the like: not all of them have the tag of what they are in place of."""
    made = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return made is not None and any(torch.Tag.pointwise in getattr(made, o).tags for o in made.overloads())
