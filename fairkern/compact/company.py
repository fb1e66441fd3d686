"""The processes that hold a model in shards: whether they do the same, and tensors that one of them is to see whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.artefacts.files import plain, sum_of
from fairkern.artefacts.plans import plan_payload
from fairkern.compact.descriptors import tensors_of
from fairkern.errors import InputError
from fairkern.model.sharded import in_shards, is_sharded, local, part_of, spread_of
from fairkern.ranks import ALONE, Ranks, together
from fairkern.ranks.digests import digest
from fairkern.types import Plan

_SAME = "shard the same model in the same way in all of them, and give all the same plan"


@contextlib.contextmanager
def company(model: nn.Module, plan: Plan, what: str) -> Iterator[Ranks]:
    """The processes that hold a model that may lie in shards, for as long as they do `what` ("apply()") with a plan;
    this one alone where it does not. It lies in shards then.

    An error within reaches all of them. Raises InputError where they hold different models, or have different plans.
    """
    held: list[tuple[tuple[str, ...], Any]] = []
    if in_shards(model):
        held = [(item.names, item.tensor) for item in tensors_of(model) if is_sharded(item.tensor)]
    if not held:
        yield ALONE
        return
    meshes = {tuple(tensor.device_mesh.mesh.flatten().tolist()): tensor.device_mesh for _, tensor in held}
    if len(set(map(frozenset, meshes))) > 1:
        raise InputError(f"parameters of this {type(model).__name__} lie in different sets of processes; use one mesh")
    with together(_group(next(iter(meshes.values()))), what) as ranks:
        said = {
            "the plan": sum_of(plain(plan_payload(plan), "plan")),
            "how the model lies in shards": digest([(names, t.shape, t.dtype, spread_of(t)) for names, t in held]),
        }
        ranks.agree(what, said, _SAME)
        yield ranks


def _group(mesh: Any) -> Any:
    import torch.distributed as dist

    if mesh.size() == dist.get_world_size():
        return True
    if mesh.ndim == 1:
        return mesh.get_group()
    raise InputError(
        f"a mesh of {tuple(mesh.mesh.shape)} of {dist.get_world_size()} processes is neither all of them nor one row: "
        "start as many as it has"
    )


def on_first(ranks: Ranks, name: str, tensor: Any) -> Tensor:
    """The whole of a tensor on the first process, on the CPU; all have to ask for it. Others get what they hold."""
    if not is_sharded(tensor) or not ranks.several:
        return local(tensor)
    import torch.distributed as dist

    part, mesh = part_of(name, tensor), tensor.device_mesh
    others = [place for dim, place in enumerate(mesh.get_coordinate()) if dim != part.mesh_dim]
    here = local(tensor)
    found = ranks.brought(f"bringing {name} together", 0, None if any(others) else here)
    if not ranks.first:
        return here
    row = mesh.mesh.movedim(part.mesh_dim, -1).reshape(-1, part.size)[0].tolist()
    members = sorted(mesh.mesh.flatten().tolist())
    if len(members) == dist.get_world_size():
        order = row
    else:
        group = mesh.get_group()
        order = [dist.get_group_rank(group, rank) for rank in row]
    return torch.cat([piece.cpu() for rank in order if (piece := found[rank]) is not None], part.dim)
