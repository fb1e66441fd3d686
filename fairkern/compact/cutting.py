"""What a cut is made of: one gather per tensor, and the sizes that modules hold or pass on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fairkern.compact.config import follow_config
from fairkern.compact.descriptors import Held, Index
from fairkern.compact.sites import install
from fairkern.errors import InputError
from fairkern.model.attributes import read_attribute, write_attribute
from fairkern.model.copying import deep_copy
from fairkern.model.nothing import Nothing, put_nothing
from fairkern.model.replacements import replace_modules
from fairkern.model.sharded import copy_unsharded, is_sharded, sharding_modules
from fairkern.model.untouched import caches, held_states
from fairkern.ops.gather import gather_many
from fairkern.plans.depth import removed_parts
from fairkern.plans.renaming import cut_lists
from fairkern.types import Plan


def gone(model: nn.Module, plan: Plan) -> dict[nn.Module, nn.Module]:
    """The modules of lists and branches that the plan removes, and what a copy has in their place."""
    parts = {model.get_submodule(part.module): part for part in removed_parts(plan)}
    listed = [model.get_submodule(f"{cut.path}.{name}") for cut in cut_lists(plan) for name in cut.goes]
    return {
        **{module: Nothing.of(module, part) for module, part in parts.items()},
        **{module: nn.Module() for module in listed},
    }


def set_sizes(model: nn.Module, plan: Plan) -> None:
    """Give attributes that hold sizes, calls that are given sizes and the configuration what the plan leaves, and lists
    the modules that stay."""
    replace_modules(model, {r.module: r.name for r in plan.replacements})
    modules = dict(model.named_modules(remove_duplicate=False))
    for change in plan.attributes:
        module = modules[change.module] if change.module in modules else model.get_submodule(change.module)
        write_attribute(module, change.attribute, change.after)
    install(model, plan.sites, plan.seen)
    if plan.config:
        follow_config(model, plan.config)
    _drop_rows(model, plan)
    blocks = tuple(f"{cut.path}.{name}." for cut in cut_lists(plan) for name in cut.goes)
    for part in removed_parts(plan):
        if not part.module.startswith(blocks):
            put_nothing(model, part)
    for cut in reversed(cut_lists(plan)):  # the names of outer lists are still those of before
        held = model.get_submodule(cut.path)._modules
        stays = [held[name] for name in cut.stays]
        held.clear()
        held.update(zip(cut.names, stays, strict=False))


def _drop_rows(model: nn.Module, plan: Plan) -> None:
    """What holds an entry for every module of a list loses those of the modules that go."""
    stays = {cut.path: [cut.names.index(name) for name in cut.stays] for cut in cut_lists(plan)}
    for rows in plan.rows:
        holder = model.get_submodule(rows.module)
        held = read_attribute(holder, rows.attribute)
        write_attribute(holder, rows.attribute, type(held)(held[k] for k in stays[rows.list]))


def copy_with(
    model: nn.Module,
    replacements: Sequence[tuple[Held, Tensor]],
    left_out: Mapping[nn.Module, nn.Module] = MappingProxyType({}),
) -> nn.Module:
    """`copy.deepcopy(model)` with some tensors replaced by others, which are taken over and not copied.

    In place of modules that are `left_out` the copy has those that are given. Works through deepcopy's memo, so that
    whatever refers to a replaced tensor refers to its replacement. Caches of tensors are empty in the copy, and states
    that modules hold are None.
    Raises InputError when the model cannot be copied.
    """
    memo: dict[int, object] = {id(held.tensor): _like(held.tensor, new) for held, new in replacements}
    modules = list(model.modules())
    memo |= {id(cache): {} for cache in caches(modules)}
    memo |= {id(getattr(module, name)): None for module, name in held_states(modules)}
    memo |= {id(module): other for module, other in left_out.items()}
    try:
        return copy_unsharded(model, memo) if sharding_modules(model) else deep_copy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"this {type(model).__name__} cannot be copied ({error}); remove what holds tensors that are results of "
            "other tensors (weight norm as a hook does), or trace with verify=False and apply with inplace=True"
        ) from error


def gather_dense(items: Sequence[tuple[Tensor, Mapping[int, Tensor]]], backend: str) -> list[Tensor]:
    """`gather_many` that keeps the memory format of dense tensors and understands the meta device."""
    results: list[Tensor | None] = [None] * len(items)
    work: list[tuple[Tensor, Index]] = []
    places: list[tuple[int, list[int] | None]] = []
    for place, (tensor, index) in enumerate(items):
        source, moved, order = tensor.detach(), dict(index), _order_of(tensor, index)
        if order is not None:
            source = source.permute(order)
            moved = {order.index(dim): positions for dim, positions in index.items()}
        if source.is_meta:
            sizes = [moved[d].shape[-1] if d in moved else size for d, size in enumerate(source.shape)]
            results[place] = _put_back(source.new_empty(sizes), order)
        else:
            work.append((source, moved))
            places.append((place, order))
    gathered = gather_many(work, backend=backend) if work else []
    for (place, order), result in zip(places, gathered, strict=True):
        results[place] = _put_back(result, order)
    return [result for result in results if result is not None]


def _order_of(tensor: Tensor, index: Mapping[int, Tensor]) -> list[int] | None:
    """The order of dimensions in which a tensor is read; None: as they are."""
    if tensor.is_contiguous() or any(positions.ndim == 2 for positions in index.values()):
        return None  # an index per position of dimension 0 needs that dimension in front
    return _memory_order(tensor)


def _put_back(tensor: Tensor, order: list[int] | None) -> Tensor:
    return tensor if order is None else tensor.permute([order.index(dim) for dim in range(len(order))])


def empty_dense(tensor: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """An uninitialised tensor of this shape with the dtype and memory format of `tensor`."""
    order = _memory_order(tensor)
    made = torch.empty([shape[dim] for dim in order], dtype=tensor.dtype, device=device)
    return made.permute([order.index(dim) for dim in range(len(order))])


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest in memory if that makes it contiguous, else as they are."""
    given = list(range(tensor.dim()))
    if tensor.is_contiguous():
        return given
    strides = tensor.stride()
    order = sorted(given, key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() else given


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as the kind of tensor that `old` is: a parameter (of its class) or a buffer."""
    if isinstance(old, nn.Parameter):
        kind = nn.Parameter if is_sharded(old) else type(old)
        return kind(new, requires_grad=old.requires_grad)
    if type(old) is not Tensor:
        new = new.as_subclass(type(old))
    return new.requires_grad_(old.requires_grad)
