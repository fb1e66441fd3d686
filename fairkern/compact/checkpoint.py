"""A pruned model on disk: a folder with its weights (safetensors) and its plan (JSON). Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fairkern.artefacts import SCHEMA, load_plan, replacing, save_plan
from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import check_header, compact, package_version, parse, sync_folder
from fairkern.compact.cutting import copy_with, empty_dense, gather_dense, gone, set_sizes
from fairkern.compact.descriptors import Held, check, check_pruned, kept, match, may_be_added, shapes_left, tensors_of
from fairkern.errors import ArtefactError, InputError
from fairkern.interrupts import unbroken
from fairkern.model.in_use import in_use
from fairkern.model.linear import give_bias
from fairkern.plans.renaming import Renaming
from fairkern.types import Plan

WEIGHTS = "model.safetensors"
PLAN = "plan.json"


def save_pruned(small: nn.Module, plan: Plan, folder: str | os.PathLike[str]) -> None:
    """Write a pruned model: `folder/model.safetensors` with the state dict and `folder/plan.json`.

    A tensor that several names share is stored once. A new (or empty) folder appears complete or not at all.
    In a folder that has other files both are replaced, each atomically, once both are written; a folder that
    was interrupted between the two is recognised on loading.

    Raises PlanMismatchError (`small` does not have the shapes that `plan` leaves), InputError (a state dict
    with something other than dense tensors with values), OSError (the folder above does not exist, cannot be
    written).
    """
    with in_use(small, "save_pruned()", reading=True):
        _save(small, plan, folder)


def _save(small: nn.Module, plan: Plan, folder: str | os.PathLike[str]) -> None:
    check_pruned(small, plan)
    tensors, shared = _stored(small)
    content = {
        "format": "fairkern.pruned",
        "schema": SCHEMA,
        "fairkern": package_version(),
        "model": plan.model,
        "plan": _digest(plan),
        "shared": shared,
    }
    metadata = {"format": "pt", "fairkern": compact(content)}
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write a pruned model to")
    with _folder(target) as place, replacing(place / WEIGHTS) as weights, replacing(place / PLAN) as described:
        save_file(tensors, weights, metadata)
        save_plan(plan, described)


def load_pruned(fresh_model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """The pruned model that `save_pruned` wrote, as a cut copy of an unpruned model of the same architecture.

    `fresh_model` may hold any weights, or none: on the meta device it costs no memory, and the result is on
    the CPU. Only what the file lacks (non-persistent buffers) is cut from it; all else is read once from the
    file, strictly, into the dtype and device of `fresh_model`. `fresh_model` stays as it is.

    Raises ArtefactError (a missing, truncated or foreign piece, a newer schema, weights of another plan),
    PlanMismatchError (`fresh_model` is of another architecture), InputError (a meta tensor that is not in the
    file, a model that cannot be copied).
    """
    place = Path(folder)
    for name in (WEIGHTS, PLAN):
        if not (place / name).is_file():
            raise ArtefactError(f"{place} has no file {name}; expected a folder that save_pruned wrote")
    plan = load_plan(place / PLAN)
    tensors, shared = _read(place / WEIGHTS, plan)
    check(fresh_model, plan)
    state = {**tensors, **{alias: tensors[name] for alias, name in shared.items() if name in tensors}}
    stored, renaming = fresh_model.state_dict().keys(), Renaming(plan)
    expected = {later for name in stored if (later := renaming.after(name)) is not None}
    extra = {name for name in state.keys() - expected if _has_module(fresh_model, renaming.before(name), plan)}
    absent, foreign = sorted(expected - state.keys()), sorted(state.keys() - expected - extra)
    if absent or foreign:
        what = f"lacks {absent[0]!r}" if absent else f"holds {foreign[0]!r}, which the model does not have"
        raise ArtefactError(f"{place / WEIGHTS} {what}: it was written for another version of this model")
    with in_use(fresh_model, "load_pruned()", reading=True), torch.no_grad():
        small = copy_with(fresh_model, _emptied(fresh_model, plan, stored), gone(fresh_model, plan))
    set_sizes(small, plan)
    for name in extra:  # biases that compensation added
        give_bias(small.get_submodule(name.rpartition(".")[0]))
    try:
        small.load_state_dict(_versioned(small, state), strict=True)
    except RuntimeError as error:
        raise ArtefactError(f"{place / WEIGHTS} does not fit the plan beside it: {error}") from error
    return small


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


def _emptied(model: nn.Module, plan: Plan, stored: Any) -> list[tuple[Held, Tensor]]:
    """Room for what the file holds, and cuts of what it does not hold."""
    shapes, renaming = shapes_left(plan), Renaming(plan)
    cuts = {id(held.tensor): index for held, index in match(model, kept(plan))}
    made = []
    for held in tensors_of(model):
        tensor = held.tensor
        if all(renaming.after(name) is None for name in held.names):
            continue
        if any(name in stored for name in held.names):
            shape = next(shapes[name] for name in held.names if name in shapes)
            device = torch.device("cpu") if tensor.is_meta else tensor.device
            made.append((held, empty_dense(tensor, shape, device)))
        elif tensor.is_meta:
            raise InputError(
                f"{held.names[0]} is not saved with the model (a non-persistent buffer) and has no values on the "
                "meta device: build the model on a real one"
            )
        elif id(tensor) in cuts:
            made.append((held, gather_dense([(tensor, cuts[id(tensor)])], "auto")[0]))
    return made


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors that share no memory, and for each name left out the name that it shares a tensor with."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = f"a {value.layout} tensor on {value.device}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{name} is {kind}: only dense tensors with values can be saved")
        value = value.detach()
        storage = value.untyped_storage().data_ptr()
        if value.numel():
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            if key in first:
                shared[name] = first[key]
                continue
            first[key] = name
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        tensors[name] = value.contiguous() if whole and storage not in storages else value.clone().contiguous()
        storages.add(storage)
    return tensors, shared


def _read(path: Path, plan: Plan) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ArtefactError(f"{path} is truncated or not a safetensors file ({error}); save the model again") from None
    try:
        content = Fields(parse(metadata["fairkern"]), path)
    except KeyError:
        raise ArtefactError(f"{path} was not written by fairkern: its metadata has no entry for it") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} has metadata that is not JSON ({error}); save the model again") from None
    check_header({key: entry.value for key, entry in content.entries().items()}, path, "pruned")
    shared = {alias: entry.text() for alias, entry in content["shared"].entries().items()}
    if content["plan"].text() != _digest(plan):
        raise ArtefactError(f"{path} was written with another plan than the {PLAN} beside it; save the model again")
    return tensors, shared


def _digest(plan: Plan) -> str:
    """Of what the plan cuts, whatever order it lists it in."""
    state = hashlib.sha256()
    for item in sorted(plan.axes, key=lambda item: (item.axis.tensor, item.axis.dim, item.removed.tolist())):
        if len(item.removed):
            state.update(f"{item.axis.tensor}\0{item.axis.dim}\0{item.length}\0".encode())
            state.update(",".join(map(str, item.removed.tolist())).encode())
    return state.hexdigest()


@contextmanager
@unbroken
def _folder(target: Path) -> Iterator[Path]:
    """Where to write: `target` if it holds files, else a folder beside it that takes its place at the end."""
    if target.is_dir() and any(target.iterdir()):
        yield target
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist: no folder to write {target.name} to")
    temporary = target.parent / f".fairkern-{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            target.rmdir()
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)
