"""Plan → small model: of one that lies in this process, or in shards in several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fairkern.compact.company import company
from fairkern.compact.cutting import copy_with, gather_dense, gone, set_sizes
from fairkern.compact.descriptors import Held, Index, check_pruned, cuts, tensors_of
from fairkern.compact.sharded import apply_sharded
from fairkern.errors import InputError
from fairkern.interrupts import undivided
from fairkern.model.autocast import forget_casts
from fairkern.model.in_use import in_use
from fairkern.model.sharded import in_shards
from fairkern.model.untouched import forget
from fairkern.types import Plan

_AT_ONCE = 1 << 22  # bytes of tensors that are cut in one call in place

def apply(
    model: nn.Module, plan: Plan, *, inplace: bool = False, sharing: bool = False, backend: str = "auto"
) -> nn.Module:
    """The model that `plan` leaves: every cut tensor gathered once, module attributes set.

    Copy (default): `model` is not touched, also when the copy fails. What is cut is never copied whole; the
    rest is copied as `copy.deepcopy` does it: tied tensors stay tied, hooks, modes, `requires_grad`, dtype,
    device and memory format (channels-last, transposed) are kept, gradients are not copied.

    `inplace=True`: returns `model` itself, each `Parameter` object (and so an optimizer's reference) kept,
    `.grad` cut along (a sparse gradient is dropped). Each large tensor is freed as its small one is made, others
    some megabytes at a time. The plan and all tensors are checked before the first is replaced; only running out
    of memory half-way leaves a model that is partly cut. Ctrl-C waits until it is cut. Optimizer state is the
    caller's to cut.

    `sharing=True`: a copy that is only run and then thrown away; parameters that lose nothing are in the memory of
    `model`'s, and are written by neither.

    Of a model in shards (`fully_shard`) every process cuts what it holds, into a model that is sharded likewise; all of
    them have to apply the same plan. See `sharded.apply_sharded`.

    Runs on any device, on meta tensors too. Cost: one read of what is kept and one write of it.
    Raises PlanMismatchError (plan for another architecture), InputError (a model that cannot be copied, a
    sparse or quantised tensor), BackendError (`backend`, as in `fairkern.ops.gather`).
    """
    with in_use(model, "apply()", reading=not inplace), torch.no_grad(), company(model, plan, "apply()"):
        sharded = in_shards(model)
        found, staying = cuts(model, plan)
        for held, _ in found:
            if held.tensor.layout != torch.strided or held.tensor.is_quantized:
                what = f"{held.tensor.layout} {held.tensor.dtype}"
                raise InputError(f"{held.names[0]} is {what}: only dense tensors are cut")
        if sharded and inplace:
            raise InputError("a model in shards is cut into another one, shard by shard: leave inplace=True out")
        if sharded:
            small = apply_sharded(model, plan, found, backend)
        elif inplace:
            small = model
            undivided(partial(_cut_in_place, model, plan, found, backend))
        else:
            gathered = gather_dense([(held.tensor, index) for held, index in found], backend)
            cut = [(held, tensor) for (held, _), tensor in zip(found, gathered, strict=True)]
            small = copy_with(model, [*cut, *_whole(model, found)] if sharing else cut, gone(model, plan))
            set_sizes(small, plan)
            check_pruned(small, plan, staying)
    return small


def _whole(model: nn.Module, found: Sequence[tuple[Held, Index]]) -> list[tuple[Held, Tensor]]:
    """Parameters that nothing is cut from, as they are."""
    cut = {id(held.tensor) for held, _ in found}
    held = (held for held in tensors_of(model) if isinstance(held.tensor, nn.Parameter) and id(held.tensor) not in cut)
    return [(each, each.tensor.detach()) for each in held]


def _cut_in_place(model: nn.Module, plan: Plan, found: Sequence[tuple[Held, Index]], backend: str) -> None:
    set_sizes(model, plan)
    for some in _small_together([(held.tensor, index) for held, index in found]):
        _replace(some, backend)
    forget(model)
    forget_casts()


def _small_together(found: Sequence[tuple[Tensor, Index]]) -> Iterator[list[tuple[Tensor, Index]]]:
    """Neighbours, of which what is made is alive beside all that they were: few bytes, or one tensor."""
    some: list[tuple[Tensor, Index]] = []
    total = 0
    for tensor, index in found:
        if some and total + tensor.nbytes > _AT_ONCE:
            yield some
            some, total = [], 0
        some.append((tensor, index))
        total += tensor.nbytes
    if some:
        yield some


def _replace(some: Sequence[tuple[Tensor, Index]], backend: str) -> None:
    made = gather_dense(some, backend)
    grads = [(tensor, tensor.grad, index) for tensor, index in some if tensor.grad is not None]
    for (tensor, _), smaller in zip(some, made, strict=True):
        tensor.grad = None
        tensor.data = smaller
    del made, smaller
    dense = [(tensor, grad, index) for tensor, grad, index in grads if grad.layout == torch.strided]
    made = gather_dense([(grad, index) for _, grad, index in dense], backend) if dense else []
    for (tensor, _, _), smaller in zip(dense, made, strict=True):
        tensor.grad = smaller
