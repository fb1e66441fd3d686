"""Plan → small model of one in shards: each tensor is cut where it lies, and only rows that stay change places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.cutting import copy_with, gather_dense, gone, set_sizes
from fairkern.compact.descriptors import Held, Index, check_pruned, tensors_of
from fairkern.errors import InputError
from fairkern.model.sharded import Group, Part, groups_of, is_sharded, local, part_of, shard, whole
from fairkern.plans.renaming import Renaming
from fairkern.types import Plan

Sharded = list[tuple[Held, Index, Part]]


def apply_sharded(model: nn.Module, plan: Plan, found: Sequence[tuple[Held, Index]], backend: str) -> nn.Module:
    """The model that `plan` leaves of one in shards, sharded by the same calls of `fully_shard`. `found`: its `cuts`.

    Every process cuts what it has of a tensor; where the dimension along which it is shared loses positions, what stays
    is shared anew, row by row, one tensor at a time. All that is checked is checked before the first exchange.

    Raises InputError for a tensor in shards of another kind, or one that would not divide where `fully_shard` wants it
    to (along other dimensions than the first).
    """
    small, sharded = _hollow(model, plan, found, backend)
    for held, index, part in sharded:
        put(small, plan, held, cut_part(held.tensor, index, part, backend))
    return small


def whole_on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model in shards as it was before: with whole tensors, on the meta device, and its own classes."""
    empty = [
        (held, torch.empty_like(held.tensor, device="meta"))
        if not is_sharded(held.tensor)
        else (held, _empty(held.tensor, {}))
        for held in tensors_of(model)
    ]
    return copy_with(model, empty)


def lying(model: nn.Module, plan: Plan, cuts: Sequence[tuple[Held, Index]]) -> tuple[list[Group], Sharded]:
    """The calls of `fully_shard` that a model lies in shards by, and what of it does and stays, with how it is cut.

    Raises InputError for what could not be sharded again.
    """
    groups, renaming = groups_of(model), Renaming(plan)
    indices = {id(held.tensor): index for held, index in cuts}
    sharded = [
        (held, indices.get(id(held.tensor), {}), part_of(held.names[0], held.tensor))
        for held in tensors_of(model)
        if is_sharded(held.tensor) and after(held, renaming)
    ]
    for held, index, part in sharded:
        _check_even(held, index, part)
        if not any(held.names[0].startswith(f"{path}." if path else "") for group in groups for path in group.modules):
            raise InputError(
                f"{held.names[0]} is distributed, and not by fully_shard: prune the model before its tensors are made "
                "parallel in other ways"
            )
    return groups, sharded


def _hollow(
    model: nn.Module, plan: Plan, found: Sequence[tuple[Held, Index]], backend: str
) -> tuple[nn.Module, Sharded]:
    """What is left, sharded but without values in what lies in shards; and what those come from."""
    groups, sharded = lying(model, plan, found)
    plain = [(held, index) for held, index in found if not is_sharded(held.tensor)]
    made = gather_dense([(held.tensor, index) for held, index in plain], backend)
    replaced = [(held, tensor) for (held, _), tensor in zip(plain, made, strict=True)]
    empty = [(held, _empty(held.tensor, index)) for held, index, _ in sharded]
    small = copy_with(model, [*replaced, *empty], gone(model, plan))
    set_sizes(small, plan)
    check_pruned(small, plan)
    shard_again(small, plan, groups, sharded)
    return small, sharded


def _empty(tensor: Tensor, index: Index) -> Tensor:
    """A tensor of the shape that is left, on the meta device."""
    shape = [index[dim].shape[-1] if dim in index else size for dim, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _check_even(held: Held, index: Index, part: Part) -> None:
    left = index[part.dim].shape[-1] if part.dim in index else part.length
    if part.dim and left % part.size:
        raise InputError(
            f"{held.names[0]} keeps {left} of {part.length} positions of dimension {part.dim}, along which it lies in "
            f"{part.size} processes, and fully_shard wants a multiple of {part.size} there: plan with "
            f"round_to={part.size}, or shard along dimension 0"
        )


def shard_again(small: nn.Module, plan: Plan, groups: Sequence[Group], sharded: Sharded) -> None:
    """Shard what is left as the model was that it was cut from; parameters of `sharded` have no values then."""
    here, renaming = dict(small.named_modules()), Renaming(plan)
    left = []
    for group in groups:
        names = [renaming.after(path) for path in group.modules]
        modules = tuple(name for name in names if name is not None and any(True for _ in here[name].parameters()))
        if modules:
            left.append(group._replace(modules=modules))
    dims = {id(small.get_parameter(after(held, renaming)[0])): part.dim for held, _, part in sharded}
    shard(small, left, dims, {p for p in small.parameters() if id(p) not in dims})


def put(small: nn.Module, plan: Plan, held: Held, values: Tensor) -> None:
    """Give a parameter of a sharded model what this process holds of it, under all its names."""
    from torch.distributed.tensor import DTensor

    names = after(held, Renaming(plan))
    empty: Any = small.get_parameter(names[0])
    spread = DTensor.from_local(
        values,
        empty.device_mesh,
        empty.placements,
        run_check=False,
        shape=empty.shape,
        stride=empty.stride(),
    )
    made = nn.Parameter(spread, requires_grad=held.tensor.requires_grad)
    for name in names:
        path, _, last = name.rpartition(".")
        setattr(small.get_submodule(path), last, made)


def after(held: Held, renaming: Renaming) -> list[str]:
    """Its names in the cut model."""
    return [later for name in held.names if (later := renaming.after(name)) is not None]


def cut_part(tensor: Tensor, index: Index, part: Part, backend: str = "auto") -> Tensor:
    """What this process holds of the cut tensor, in memory of its own. All that hold some of it have to ask for it.

    Cost: no more memory than what it holds before and after; a tensor of which every position of dimension 0 keeps
    others, along which it is shared, is gathered whole.
    """
    here = local(tensor)
    if part.dim in index and index[part.dim].ndim == 2:
        cut = gather_dense([(whole(tensor), index)], backend)[0]
        start, stop = part.share(cut.shape[part.dim], part.rank)
        return cut.narrow(part.dim, start, stop - start).contiguous()
    stays = gather_dense([(here, part.own(index))], backend)[0]
    return _shared_anew(tensor, stays, index[part.dim], part) if part.dim in index else stays


def _shared_anew(tensor: Any, stays: Tensor, positions: Tensor, part: Part) -> Tensor:
    """Every process has what stays of its positions; returns its share of all of them. Bytes are moved, in order."""
    import torch.distributed as dist

    begins = [int((positions < part.share(part.length, rank)[0]).sum()) for rank in range(part.size)]
    ends = [*begins[1:], len(positions)]
    gives = [_meet(begins[part.rank], ends[part.rank], *part.share(len(positions), r)) for r in range(part.size)]
    mine = part.share(len(positions), part.rank)
    takes = [_meet(begins[r], ends[r], *mine) for r in range(part.size)]
    rows = stays.movedim(part.dim, 0).contiguous()
    wide = math.prod(rows.shape[1:])
    sent = rows.reshape(len(rows), wide).view(torch.uint8).to(tensor.device_mesh.device_type)
    come = torch.empty((sum(takes), sent.shape[1]), dtype=torch.uint8, device=sent.device)
    dist.all_to_all_single(come, sent, takes, gives, group=tensor.device_mesh.get_group(part.mesh_dim))
    made = come.to(rows.device).view(rows.dtype).reshape(sum(takes), *rows.shape[1:])
    return made.movedim(0, part.dim).contiguous()


def _meet(start: int, stop: int, begin: int, end: int) -> int:
    """How many positions two spans have in common."""
    return max(0, min(stop, end) - max(start, begin))
