"""Look before you cut: the removed units silenced in the model as it is, and put back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fairkern.compact.company import company
from fairkern.compact.cutting import gather_dense
from fairkern.compact.descriptors import Held, Index, check, match, silenced
from fairkern.compact.routers import silent_experts
from fairkern.errors import InputError
from fairkern.model.autocast import forget_casts
from fairkern.model.in_use import in_use
from fairkern.model.nothing import without
from fairkern.model.sharded import in_shards, is_sharded, local, part_of
from fairkern.model.tensors import memory_of
from fairkern.plans.depth import removed_branches
from fairkern.surroundings import check_ordinary, refuse, uncompiled
from fairkern.types import Branch, Plan, Silence


class masked:
    """Context manager in which the units that `plan` removes contribute zero to every consumer of `model`.

    On entry the plan is checked and the removed positions of every consumer axis are set to zero in place;
    on exit, also through an exception or Ctrl-C, they are put back bitwise. What is saved is what is zeroed.
    Whole experts are left out at their router besides, whose logits for them are −inf (in this thread). Of branches the
    last module returns zeros, by a hook.
    Autograd does not see either step: `requires_grad`, `.grad` and version counters stay as they are. Autocast's casts
    of weights are forgotten on both. Within,
    `model(x)` equals `apply(model, plan)(x)` up to the order of float additions.

    One object can be entered again, and masks can be nested, and left in any order (tasks of one thread that take
    turns): what is silenced is what those that are on silence. Do not cut or replace the model's tensors within.
    Ctrl-C strikes before a mask is on, within, or once it is off. Another thread may call the model within, but not
    trace, score, mask or cut it: InputError.
    Raises PlanMismatchError on entry, before anything is written. `strict=False` leaves that check out, for a model
    that has been given biases since.

    `origins`: other tensors, by the `id` of those of `model` that have the same values, whole, in memory of their own
    (maybe in a coarser dtype). Nothing is saved of these: on exit they are copied from there.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, *, strict: bool = True, origins: Mapping[int, Tensor] = MappingProxyType({})
    ) -> None:
        self._model = model
        self._strict = strict
        self._origins = origins
        self._plan = plan
        self._entered: list[contextlib.ExitStack] = []

    @uncompiled
    def __enter__(self) -> nn.Module:
        refuse("masked")
        with contextlib.ExitStack() as stack:
            stack.enter_context(in_use(self._model, "a mask"))
            with company(self._model, self._plan, "masked()"):
                self._put_on(stack)
            self._entered.append(stack.pop_all())
        return self._model

    def _put_on(self, stack: contextlib.ExitStack) -> None:
        if self._strict:
            check(self._model, self._plan)
        targets = match(self._model, silenced(self._plan, Silence.ZERO))
        if not torch.is_inference_mode_enabled():
            check_ordinary((held.names[0], held.tensor) for held, _ in targets)
        zeros = _Zeros([(held.tensor, _here(held, index)) for held, index in targets], self._origins)
        stack.callback(zeros.take_off)
        zeros.put_on()
        for branch in removed_branches(self._plan):
            stack.callback(_silent(self._model, branch).remove)
        silent = without_experts(self._model, self._plan)
        if silent is not None:
            stack.enter_context(silent)
        stack.callback(in_shards, self._model)  # before anything is put back: what a pass left whole has zeros of ours

    @uncompiled
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)


def without_experts(model: nn.Module, plan: Plan) -> silent_experts | None:
    """The part of `masked` that holds in one thread only: the routers, if the plan removes whole experts."""
    routers = [
        (held, dim, gone)
        for held, index in match(model, silenced(plan, Silence.MINUS_INFINITY))
        for dim, gone in index.items()
    ]  # fmt: skip
    if not routers:
        return None
    places = [(place, held.tensor) for held, _, _ in routers if is_sharded(held.tensor) for place in held.places(model)]
    return silent_experts([(held.tensor, dim, gone) for held, dim, gone in routers], places)


def _here(held: Held, index: Index) -> Index:
    """The positions of what this process holds of a tensor."""
    if not is_sharded(held.tensor):
        return index
    part = part_of(held.names[0], held.tensor)
    if part.dim in index and index[part.dim].ndim == 2:
        raise InputError(
            f"{held.names[0]} lies in shards along dimension {part.dim}, of which each of its parts loses others: "
            "apply the plan, or shard along dimension 0"
        )
    return part.own(index)


def _silent(model: nn.Module, branch: Branch) -> RemovableHandle:
    """From now on this branch adds zero."""

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return without(output, branch.last)

    return model.get_submodule(branch.last.module).register_forward_hook(hook)


_Saved = tuple[Tensor, int, Tensor, Tensor | None]  # tensor, dim, positions, what was there (None: its origin knows)


class _Zeros:
    """What one mask has set to zero, and what was there."""

    def __init__(self, targets: Sequence[tuple[Tensor, Index]], origins: Mapping[int, Tensor]) -> None:
        self._targets, self._origins = targets, origins
        self._saved: list[_Saved] = []
        self._memory = {memory_of(tensor) for tensor, _ in targets}

    def put_on(self) -> None:
        _ON.append(self)
        self._set()

    def take_off(self) -> None:
        """Those that were put on since, over the same tensors, are lifted meanwhile: they hold our zeros as what was
        there, and see what we put back."""
        above = [other for other in _ON[_ON.index(self) + 1 :] if not other._memory.isdisjoint(self._memory)]
        with contextlib.ExitStack() as steps:  # each is taken, whatever becomes of the others
            for other in reversed(above):
                steps.callback(other._set)
            steps.callback(_ON.remove, self)
            steps.callback(self._put_back)
            for other in above:
                steps.callback(other._put_back)

    def _set(self) -> None:
        jobs = [
            (tensor, local(tensor.data), dim, positions)  # its data shares the memory, not the version counter
            for tensor, index in self._targets
            for dim, positions in index.items()
        ]
        kept = [(data, {dim: positions}) for tensor, data, dim, positions in jobs if id(tensor) not in self._origins]
        there = iter(gather_dense(kept, "auto"))
        for tensor, data, dim, positions in jobs:
            silent = _spread(data, dim, positions.to(data.device))
            self._saved.append((tensor, dim, silent, None if id(tensor) in self._origins else next(there)))
            if silent.ndim == 1:
                data.index_fill_(dim, silent, 0)
            else:
                data.scatter_(dim, silent, 0)
        forget_casts()

    def _put_back(self) -> None:
        """In any order: what two dimensions have in common is in both as it was."""
        with torch.no_grad(), contextlib.ExitStack() as steps:
            steps.callback(forget_casts)
            steps.callback(self._saved.clear)
            for tensor, dim, positions, values in self._saved:
                if values is None:
                    steps.callback(tensor.data.copy_, self._origins[id(tensor)])
                else:
                    steps.callback(_put_back, tensor, dim, positions, values)


_ON: list[_Zeros] = []  # of all threads, in the order in which they were put on


def _spread(data: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Positions as `scatter_` takes them, where every position of dimension 0 loses others."""
    if positions.ndim == 1:
        return positions
    rows = positions.reshape([len(positions), *(positions.shape[1] if d == dim else 1 for d in range(1, data.ndim))])
    return rows.expand([n if d != dim else -1 for d, n in enumerate(data.shape)])


def _put_back(tensor: Tensor, dim: int, positions: Tensor, values: Tensor) -> None:
    data = local(tensor.data)
    if positions.ndim == 1:
        data.index_copy_(dim, positions, values)
    else:
        data.scatter_(dim, positions, values)
