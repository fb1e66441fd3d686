"""Plan → small model: of one that lies in this process, or in shards in several."""

from __future__ import annotations

from collections.abc import Sequence
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


def apply(
    model: nn.Module, plan: Plan, *, inplace: bool = False, sharing: bool = False, backend: str = "auto"
) -> nn.Module:
    """The model that `plan` leaves: every cut tensor gathered once, module attributes set.

    Copy (default): `model` is not touched, also when the copy fails. What is cut is never copied whole; the
    rest is copied as `copy.deepcopy` does it: tied tensors stay tied, hooks, modes, `requires_grad`, dtype,
    device and memory format (channels-last, transposed) are kept, gradients are not copied.

    `inplace=True`: returns `model` itself, each `Parameter` object (and so an optimizer's reference) kept,
    `.grad` cut along (a sparse gradient is dropped). Each large tensor is freed as its small one is made. The
    plan and all tensors are checked before the first is replaced; only running out of memory half-way leaves
    a model that is partly cut. Ctrl-C waits until it is cut. Optimizer state is the caller's to cut.

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
    for held, index in found:
        _replace(held.tensor, index, backend)
    forget(model)
    forget_casts()


def _replace(tensor: Tensor, index: Index, backend: str) -> None:
    grad = tensor.grad
    tensor.grad = None
    tensor.data = gather_dense([(tensor, index)], backend)[0]
    if grad is not None and grad.layout == torch.strided:
        tensor.grad = gather_dense([(grad, index)], backend)[0]
