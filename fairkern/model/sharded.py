"""Models whose parameters lie in shards in several processes: `torch.distributed.fsdp.fully_shard` (FSDP2).

Between two passes such a module holds `DTensor`s, of which every process has some positions of one dimension: torch's
chunks, ⌈n / processes⌉ each, so that the last may have fewer or none. In a forward pass it holds ordinary tensors.
Nothing of torch.distributed is imported before somebody else has.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairkern.errors import InputError


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of this tensor, or copies (a `DTensor`)."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def sharding_modules(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that `fully_shard` was called with, by their first names, outer ones first."""
    kind = _sharding()
    return [(path, module) for path, module in model.named_modules() if isinstance(module, kind)] if kind else []


def _sharding() -> Any:
    """What modules are that `fully_shard` was called with; () where nobody can have called it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())


def in_shards(model: nn.Module) -> bool:
    """Whether parameters of this model lie in shards; puts them back there, where a forward pass has left them whole.

    That costs no communication.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None:
        return False
    kind, modules = _sharding(), list[Any](model.modules())
    found = [module for module in modules if isinstance(module, kind)]
    for module in found:
        module.reshard()
    return bool(found) or any(isinstance(p, tensors.DTensor) for m in modules for p in m._parameters.values())


def processes_of(model: nn.Module) -> int:
    """How many processes hold a model together: 1 where it does not lie in shards."""
    if not in_shards(model):
        return 1
    held: list[Any] = [p for p in model.parameters() if is_sharded(p)]
    return max((p.device_mesh.size() for p in held), default=1)


@contextlib.contextmanager
def put_in_shards(model: nn.Module) -> Iterator[None]:
    """Parameters lie in shards when this begins and when it ends, as they do between two steps of training: what a
    forward pass without a backward one leaves whole (those of the outermost module) would not see what is written to
    the shards."""
    in_shards(model)
    try:
        yield
    except BaseException:
        for _, module in sharding_modules(model):
            begun = module._get_fsdp_state()._is_root  # none is before the first pass
            if begun and hasattr(module, "reset_iter_state"):  # one that has stopped half-way
                module.reset_iter_state()
        raise
    finally:
        in_shards(model)


def spread_of(tensor: Any) -> str:
    """How a tensor lies in processes: the same in all of them."""
    return f"{tuple(tensor.placements)} {tensor.device_mesh.mesh.tolist()}"


class Part(NamedTuple):
    """What this process holds of a tensor: positions `start` … `stop` of a dimension of so many, shared by `size`."""

    dim: int
    length: int
    start: int
    stop: int
    rank: int
    size: int
    mesh_dim: int

    def share(self, length: int, rank: int) -> tuple[int, int]:
        """Where that of one process begins and ends, if there were `length` positions."""
        each = -(-length // self.size)
        return min(rank * each, length), min((rank + 1) * each, length)

    def own(self, index: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Of positions of the whole tensor those that lie here, counted from the first one here: dimension → int64 [n],
        or a row of them for every position of dimension 0."""
        found = {}
        for dim, positions in index.items():
            if dim == self.dim:
                positions = positions[(positions >= self.start) & (positions < self.stop)] - self.start
            elif positions.ndim == 2 and self.dim == 0:
                positions = positions[self.start : self.stop]
            found[dim] = positions
        return found


def part_of(name: str, tensor: Any) -> Part:
    """Raises InputError for one that is cut along two dimensions, or whose parts are none of `fully_shard`'s."""
    shards = [(place, p) for place, p in enumerate(tensor.placements) if not p.is_replicate()]
    if len(shards) != 1 or type(shards[0][1]).__name__ != "Shard":
        raise InputError(
            f"{name} is distributed as {tuple(tensor.placements)}; what fully_shard has cut along one dimension can be "
            "pruned: do that before tensors are made parallel in other ways"
        )
    mesh_dim, placement = shards[0]
    mesh, dim = tensor.device_mesh, placement.dim % tensor.ndim
    length, size, rank = tensor.shape[dim], mesh.size(mesh_dim), mesh.get_local_rank(mesh_dim)
    start, stop = Part(dim, length, 0, 0, rank, size, mesh_dim).share(length, rank)
    here = local(tensor).shape[dim]
    if here != stop - start:
        raise InputError(f"{name} has {here} positions of dimension {dim} here; fully_shard would leave {stop - start}")
    return Part(dim, length, start, stop, rank, size, mesh_dim)


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor, on the same memory."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        here: Tensor = tensor.detach().to_local()
    return here


def whole(tensor: Any) -> Tensor:
    """The whole of a tensor, on the device of its part. Of one in shards that is gathered: all processes that hold some
    of it have to ask, in the same order. Cost: its size, twice for a moment."""
    if not is_sharded(tensor):
        return tensor.detach()
    here = tensor.detach()
    if here.device.type != here.device_mesh.device_type:  # offloaded: what gathers does not reach it
        with torch.no_grad():
            moved = here.to(here.device_mesh.device_type).full_tensor()
            return moved.to(here.device)
    with torch.no_grad():
        made: Tensor = here.full_tensor()
    return made


def whole_row(name: str, tensor: Any, row: int) -> Tensor:
    """`whole(tensor)[row]`; the others do not come along, where that is the dimension that is shared."""
    if not is_sharded(tensor):
        return tensor.detach()[row]
    part = part_of(name, tensor)
    if part.dim:
        return whole(tensor)[row]
    import torch.distributed as dist

    here, group = local(tensor), tensor.device_mesh.get_group(part.mesh_dim)
    owner = row // -(-part.length // part.size)
    sent = here[row - part.start] if owner == part.rank else here.new_empty(tensor.shape[1:])
    there = sent.contiguous().to(tensor.device_mesh.device_type)
    dist.broadcast(there, dist.get_global_rank(group, owner), group)
    return there.to(here.device)


class Group(NamedTuple):
    """What one call of `fully_shard` was given: modules by their names, and options."""

    modules: tuple[str, ...]
    options: Mapping[str, Any]


def groups_of(model: nn.Module) -> list[Group]:
    """The calls of `fully_shard` that shard a model as this one is, inner modules first.

    Raises InputError where parameters of one call lie on several meshes, or on one for more than data parallelism.
    """
    names: dict[Any, list[str]] = {}
    for path, module in reversed(sharding_modules(model)):
        names.setdefault(module._get_fsdp_state(), []).append(path)
    found = []
    for state, paths in names.items():
        held = getattr(state, "_fsdp_param_groups", None)
        if held is None:  # before torch 2.11 there is at most one
            held = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
        if len(held) != 1:
            if not held:
                continue  # a module without parameters of its own
            raise InputError(f"parameters of {paths[-1] or 'the model'} lie on several meshes: use one for each call")
        (group,) = held
        if getattr(group.mesh_info, "dp_mesh_dims", None) is not None:
            raise InputError(
                f"{paths[-1] or 'the model'} was sharded with dp_mesh_dims=, for tensors that are parallel in other "
                "ways too: prune the model before they are made so"
            )
        options = {
            "mesh": group.mesh_info.mesh,
            "reshard_after_forward": _reshards(state, group),
            "mp_policy": group.mp_policy,
            "offload_policy": group.offload_policy,
        }
        found.append(Group(tuple(reversed(paths)), options))
    return found


def _reshards(state: Any, group: Any) -> bool | int | None:
    """What `reshard_after_forward` was."""
    if state._auto_reshard_after_forward:
        return None
    after = group.post_forward_mesh_info
    if after is None or after is group.mesh_info:
        return after is not None
    return int(after.shard_mesh_size)


def shard(model: nn.Module, groups: list[Group], dims: Mapping[int, int], alone: set[nn.Parameter]) -> None:
    """Shard a model by these calls. `dims`: the dimension that is cut of each parameter, by its id; `alone`: parameters
    that stay whole."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    for group in groups:
        modules = [model.get_submodule(path) for path in group.modules]
        fully_shard(
            modules if len(modules) > 1 else modules[0],
            shard_placement_fn=lambda p: Shard(dims[id(p)]),
            ignored_params=alone,
            **group.options,
        )


def copy_unsharded(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, in which modules are of the classes that they had before `fully_shard`, and have no
    hooks of it. Parameters in shards have to be in `memo`; what is nothing but in something there is not copied.

    Raises InputError for a sharded module whose class copies itself.
    """
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed.fsdp import FSDPModule

    hollow: list[tuple[Any, nn.Module]] = []
    others: list[tuple[dict[Any, Any], dict[Any, Any]]] = []  # what other functions of its kind keep at a module
    for module in _reached(model, memo, set()):
        for hooks in _hooks(module):
            memo |= {id(hook): _GONE for hook in hooks.values() if _of_torch(hook)}
        for kept in (value for key, value in vars(module).items() if key in (STATE_KEY, REGISTRY_KEY)):
            memo[id(kept)] = left = type(kept)()
            others.append((left, {k: v for k, v in kept.items() if getattr(k, "__name__", k) != "fully_shard"}))
        if isinstance(module, FSDPModule):
            kind: Any = type(module).__mro__[2]
            if hasattr(kind, "__deepcopy__"):
                raise InputError(f"this {kind.__name__} is sharded and copies itself: it cannot be copied")
            memo[id(module)] = new = kind.__new__(kind)
            hollow.append((module, new))
    for left, kept in others:
        left.update(copy.deepcopy(kept, memo))
    for sharded, new in hollow:
        new.__setstate__(copy.deepcopy(sharded.__reduce_ex__(2)[2], memo))
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for hooks in _hooks(module):
            for key in [key for key, hook in hooks.items() if hook is _GONE or _of_torch(hook)]:
                del hooks[key]
    return made


_GONE = object()


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict)]


def _reached(module: nn.Module, memo: Mapping[int, Any], seen: set[int]) -> Iterator[nn.Module]:
    if id(module) in memo or id(module) in seen:
        return
    seen.add(id(module))
    yield module
    for child in module.children():
        yield from _reached(child, memo, seen)


def _of_torch(hook: Any) -> bool:
    """Whether a hook is one that `fully_shard` has registered."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp.")
