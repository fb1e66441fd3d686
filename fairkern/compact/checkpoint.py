"""A pruned model on disk: a folder with its weights (safetensors) and its plan (JSON). Nothing is pickled."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.artefacts import SCHEMA, read_json
from fairkern.artefacts.builds import BUILD, build_file, is_build_of
from fairkern.artefacts.files import (
    compact,
    json_file,
    plain,
    sum_of,
)
from fairkern.artefacts.plans import plan_payload, read_plan_payload
from fairkern.artefacts.tensors import Later, order_of, write_tensors
from fairkern.artefacts.writing import replacing_all, whole_folder
from fairkern.compact.built import buffers_built
from fairkern.compact.company import company, on_first
from fairkern.compact.config import follow_config
from fairkern.compact.cutting import copy_with, empty_dense, gather_dense, gone, set_sizes
from fairkern.compact.descriptors import (
    Held,
    check,
    check_pruned,
    kept,
    match,
    may_be_added,
    shapes_after,
    shapes_left,
    tensors_of,
)
from fairkern.compact.sharded import Sharded, after, lying, put, shard_again
from fairkern.compact.weights_file import PLAN, WEIGHTS, check_dtypes, present, read_weights, stored_tensors
from fairkern.errors import ArtefactError, InputError
from fairkern.model.fields import bias_fields
from fairkern.model.in_use import in_use
from fairkern.model.linear import give_bias
from fairkern.model.sharded import Part, in_shards, is_sharded, local
from fairkern.model.tensors import named_tensors
from fairkern.plans.renaming import Renaming
from fairkern.ranks import Ranks
from fairkern.types import Build, ConfigChange, Plan
from fairkern.version import package_version


def save_pruned(
    small: nn.Module,
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    build: Build | None = None,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a pruned model: `folder/model.safetensors` with the state dict and `folder/plan.json`; `build.json` where
    it is known how the unpruned architecture is made, and what is to lie `beside` them, by name.

    A tensor that several names share is stored once. A new folder appears complete or not at all. A folder that exists
    is written into: these files are replaced, each atomically, once all are on the disk; one that was interrupted
    between two of them is recognised on loading. They carry sums, of all that they say, and weights and build that of
    the plan. A build of another plan goes.

    Raises PlanMismatchError (`small` does not have the shapes that `plan` leaves), InputError (a state dict
    with something other than dense tensors with values, of dtypes that safetensors has), OSError (the folder above
    does not exist, cannot be written, a full disk; what was there stays as it was).

    Cost: one pass over the weights, which sums them up and writes them; of those on a GPU, one tensor at a time is
    copied. A model in shards is written by its first process, to which the others bring what they hold of one tensor
    after the other.
    """
    with in_use(small, "save_pruned()", reading=True), company(small, plan, "save_pruned()") as ranks:
        _save(small, plan, folder, build, beside, ranks)


def _save(
    small: nn.Module,
    plan: Plan,
    folder: str | os.PathLike[str],
    build: Build | None,
    beside: Mapping[str, bytes],
    ranks: Ranks,
) -> None:
    check_pruned(small, plan)
    tensors, shared = stored_tensors(small)
    payload = plain(plan_payload(plan), "plan")
    files: dict[str, bytes] = {PLAN: json_file("plan", payload)}
    if build is not None:
        files[BUILD] = build_file(build, sum_of(payload))
    files.update(beside)
    content = {
        "format": "fairkern.pruned",
        "schema": SCHEMA,
        "fairkern": package_version(),
        "model": plan.model,
        "plan": sum_of(payload),
        "shared": shared,
        **({"flags": flags} if (flags := _flags(small, plan)) else {}),
    }
    metadata = {"format": "pt", "fairkern": compact(content)}
    if not ranks.first:
        for name in order_of(tensors):
            on_first(ranks, name, tensors[name])
        return
    with whole_folder(folder) as place:
        with replacing_all([place / WEIGHTS, *(place / name for name in files)]) as paths:
            write_tensors(paths[0], {name: _when_written(ranks, name, t) for name, t in tensors.items()}, metadata)
            for path, data in zip(paths[1:], files.values(), strict=True):
                path.write_bytes(data)
        if build is None and not is_build_of(place / BUILD, sum_of(payload)):
            (place / BUILD).unlink(missing_ok=True)


def _when_written(ranks: Ranks, name: str, tensor: Tensor) -> Tensor | Later:
    """One in shards is brought together when its turn has come."""
    if not is_sharded(tensor):
        return tensor
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return Later(like, partial(on_first, ranks, name, tensor))


def load_pruned(fresh_model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """The pruned model that `save_pruned` wrote, as a cut copy of an unpruned model of the same architecture.

    `fresh_model` may hold any weights, or none: on the meta device it costs no memory, and the result is on
    the CPU. Only what the file lacks (non-persistent buffers) is cut from it; all else is read once from the
    file, strictly, into the dtype and device of `fresh_model`. `fresh_model` stays as it is. Floating point is cast to
    another floating-point dtype, nothing else is.

    Each file is opened once, so a folder that another process replaces gives what was there, what comes to be there,
    or ArtefactError. One that was written before files had sums is read with a warning.

    Raises ArtefactError (a missing, truncated, edited or foreign piece, a newer schema, weights of another plan or
    dtype), PlanMismatchError (`fresh_model` is of another architecture), InputError (a meta tensor that is not in the
    file, a model that cannot be copied).

    Into a model in shards (`fully_shard`) every process reads the file, one tensor after the other, and keeps what it
    is to hold; the result is sharded likewise.

    Cost: the file is read into memory and from there into the model. Summing it up takes about a second per gigabyte
    on one thread; it runs in as many as torch uses.
    """
    place = Path(folder)
    payload = present(place, PLAN, lambda path: read_json(path, "plan"))
    plan = read_plan_payload(payload, place / PLAN)
    with company(fresh_model, plan, "load_pruned()"):
        return loaded_into(fresh_model, place, plan, sum_of(payload))


def loaded_into(
    fresh_model: nn.Module, place: Path, plan: Plan, plan_sum: str, *, device: torch.device | None = None
) -> nn.Module:
    """`load_pruned` of a folder whose plan has been read. With a device, what the file has comes to lie there in the
    file's dtypes; on meta, nothing of it is read but what it says of itself."""
    groups, sharded = lying(fresh_model, plan, match(fresh_model, kept(plan))) if in_shards(fresh_model) else ([], [])
    keep = partial(_part, _parts(plan, sharded)) if sharded else None
    bare = device is not None and device.type == "meta"
    tensors, shared, flags = present(place, WEIGHTS, lambda path: read_weights(path, plan, plan_sum, keep, bare))
    check(fresh_model, plan)
    state = {**tensors, **{alias: tensors[name] for alias, name in shared.items() if name in tensors}}
    stored, renaming = fresh_model.state_dict().keys(), Renaming(plan)
    expected = {later for name in stored if (later := renaming.after(name)) is not None}
    extra = {name for name in state.keys() - expected if _has_module(fresh_model, renaming.before(name), plan)}
    absent, foreign = sorted(expected - state.keys()), sorted(state.keys() - expected - extra)
    if absent or foreign:
        what = f"lacks {absent[0]!r}" if absent else f"holds {foreign[0]!r}, which the model does not have"
        raise ArtefactError(f"{place / WEIGHTS} {what}: it was written for another version of this model")
    room = None if device is None else (device, {name: tensor.dtype for name, tensor in state.items()})
    with in_use(fresh_model, "load_pruned()", reading=True), torch.no_grad():
        small = copy_with(fresh_model, _emptied(fresh_model, plan, stored, room), gone(fresh_model, plan))
    set_sizes(small, plan)
    if extra and sharded:
        raise InputError(
            f"{place / WEIGHTS} has biases that compensation added ({min(extra)}): load it into a model that does not "
            "lie in shards, and shard that"
        )
    for name in extra:  # biases that compensation added
        give_bias(small.get_submodule(name.rpartition(".")[0]))
    own = bias_fields(small)
    set_ = [ConfigChange(name, own[name], value) for name, value in flags.items() if own.get(name, value) != value]
    if set_:
        follow_config(small, set_)
    check_dtypes(state, small, place / WEIGHTS)
    shard_again(small, plan, groups, sharded)
    for held, _, part in sharded:
        names = after(held, Renaming(plan))
        values = [state.pop(name) for name in names]
        _check_part(names[0], values[0], small.get_parameter(names[0]), part, place / WEIGHTS)
        put(small, plan, held, values[0].to(_place_of(held.tensor), held.tensor.dtype))
    try:
        small.load_state_dict(_versioned(small, state), strict=not sharded)
    except (RuntimeError, IndexError) as error:  # torch takes the first element of a row for a scalar
        raise ArtefactError(f"{place / WEIGHTS} does not fit the plan beside it: {error}") from error
    return small


def _parts(plan: Plan, sharded: Sharded) -> dict[str, Part]:
    """By their names in the file how tensors lie in shards."""
    return {name: part for held, _, part in sharded for name in after(held, Renaming(plan))}


def _part(parts: Mapping[str, Part], name: str, tensor: Tensor) -> Tensor:
    """What is held here of a tensor of the file."""
    part = parts.get(name)
    if part is None or tensor.ndim <= part.dim:
        return tensor
    start, stop = part.share(tensor.shape[part.dim], part.rank)
    return tensor.narrow(part.dim, start, stop - start).clone()


def _check_part(name: str, values: Tensor, empty: nn.Parameter, part: Part, path: Path) -> None:
    expected = list(empty.shape)
    start, stop = part.share(expected[part.dim], part.rank)
    expected[part.dim] = stop - start
    if list(values.shape) != expected:
        raise ArtefactError(f"{path} does not fit the plan beside it: {name} leaves {tuple(values.shape)} here")


def _place_of(tensor: Any) -> torch.device:
    """Where what is held here of a tensor in shards is to lie."""
    return torch.device(tensor.device_mesh.device_type) if tensor.is_meta else local(tensor).device


def _flags(small: nn.Module, plan: Plan) -> dict[str, bool]:
    """Of a model with biases that no plan knows of: what its configuration says of biases."""
    planned = shapes_after(plan)
    return bias_fields(small) if any(name not in planned for name in named_tensors(small)) else {}


def _has_module(model: nn.Module, name: str, plan: Plan) -> bool:
    try:
        return may_be_added(model, name, plan)
    except AttributeError:  # no module of that name
        return False


def _versioned(model: nn.Module, state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The state with the versions that the model's modules give theirs: some refuse one without (MNASNet)."""
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    return versioned


def _emptied(
    model: nn.Module, plan: Plan, stored: Any, room: tuple[torch.device, Mapping[str, torch.dtype]] | None
) -> list[tuple[Held, Tensor]]:
    """Room for what the file holds, and cuts of what it does not hold. `room`: where, and of which dtypes by name, if
    not as the model has it."""
    shapes, renaming = shapes_left(plan), Renaming(plan)
    cuts = {id(held.tensor): index for held, index in match(model, kept(plan))}
    made = []
    built: dict[str, Tensor] | None = None
    for held in tensors_of(model):
        tensor = held.tensor
        if all(renaming.after(name) is None for name in held.names):
            continue
        if is_sharded(tensor):
            shape = next(shapes[name] for name in held.names if name in shapes)
            made.append((held, torch.empty(shape, dtype=tensor.dtype, device="meta")))
            continue
        if any(name in stored for name in held.names):
            shape = next(shapes[name] for name in held.names if name in shapes)
            device = torch.device("cpu") if tensor.is_meta else tensor.device
            if room is not None:
                device, dtypes = room
                own = next((dtypes[n] for n in map(renaming.after, held.names) if n is not None and n in dtypes), None)
                if own is not None and own.is_floating_point and tensor.is_floating_point():
                    tensor = tensor.to(own)
            made.append((held, empty_dense(tensor, shape, device)))
            continue
        if tensor.is_meta:
            built = buffers_built(model) if built is None else built
            values = next((built[name] for name in held.names if name in built), None)
            if values is None or values.is_meta or values.shape != tensor.shape:
                raise InputError(
                    f"{held.names[0]} is not saved with the model (a non-persistent buffer), has no values on the "
                    "meta device, and no configuration that the model is built from: build the model on a real one"
                )
            cut = cuts.get(id(tensor))
            values = values.to(tensor.dtype)
            made.append((held, values if cut is None else gather_dense([(values, cut)], "auto")[0]))
        elif id(tensor) in cuts:
            made.append((held, gather_dense([(tensor, cuts[id(tensor)])], "auto")[0]))
    return made
