"""The file of a pruned model's weights: what is stored in it, and what its reader checks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import SUM, check_header, check_sum, parse
from fairkern.artefacts.tensors import open_tensors
from fairkern.compact.descriptors import tensors_of
from fairkern.errors import ArtefactError, InputError
from fairkern.model.sharded import is_sharded
from fairkern.types import Plan

WEIGHTS = "model.safetensors"
PLAN = "plan.json"
CONFIG = "config.json"  # of transformers

T = TypeVar("T")


def stored_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors that share no memory, and for each name left out the name that it shares a tensor with."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    sharded = {name: held.names[0] for held in tensors_of(model) if is_sharded(held.tensor) for name in held.names}
    for name, value in model.state_dict().items():
        if name in sharded and not value.is_meta:
            if name == sharded[name]:
                tensors[name] = value.detach()
            else:
                shared[name] = sharded[name]
            continue
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


def read_weights(
    path: Path, plan: Plan, plan_sum: str, keep: Callable[[str, Tensor], Tensor] | None = None, bare: bool = False
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, bool]]:
    with open_tensors(path) as file:
        metadata = file.metadata
        try:
            content = Fields(parse(metadata["fairkern"]), path)
        except KeyError:
            raise ArtefactError(
                f"{path} was not written by fairkern: its metadata has no entry for it; {instead(path.parent)}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{path} has metadata that is not JSON ({error}); save the model again") from None
        header = {key: entry.value for key, entry in content.entries().items()}
        check_header(header, path, "pruned")
        own_sum = {SUM: metadata[SUM]} if SUM in metadata else {}
        if bare:
            tensors = {n: torch.empty(s, dtype=file.dtypes[n], device="meta") for n, s in file.shapes.items()}
        else:
            tensors, found = file.read(keep)
            check_sum({**header, **own_sum}, found, path, "model")
    if content["plan"].text() != (plan_sum if own_sum else digest_of(plan)):
        raise ArtefactError(f"{path} was written with another plan than the {PLAN} beside it; save the model again")
    shared = {alias: entry.text() for alias, entry in content["shared"].entries().items()}
    return tensors, shared, {name: entry.flag() for name, entry in content.get("flags", {}).entries().items()}


def check_dtypes(stored: Mapping[str, Tensor], small: nn.Module, path: Path) -> None:
    """Raises ArtefactError where a value would be read as a number of another kind."""
    for name, own in small.state_dict().items():
        dtype = stored[name].dtype if name in stored else own.dtype
        if dtype != own.dtype and not (dtype.is_floating_point and own.is_floating_point()):
            raise ArtefactError(
                f"{path} holds {name!r} as {dtype}, where the model has {own.dtype}; only floating point is "
                "cast, to floating point: it was written for another version of this model, or is damaged"
            )


def digest_of(plan: Plan) -> str:
    """Of what the plan cuts, whatever order it lists it in: what weights without a sum of theirs hold of the plan."""
    state = hashlib.sha256()
    for item in sorted(plan.axes, key=lambda item: (item.axis.tensor, item.axis.dim, item.removed.tolist())):
        if len(item.removed):
            state.update(f"{item.axis.tensor}\0{item.axis.dim}\0{item.length}\0".encode())
            state.update(",".join(map(str, item.removed.tolist())).encode())
    return state.hexdigest()


def present(place: Path, name: str, read: Callable[[Path], T]) -> T:
    """What a reader makes of a file of the folder, which has to be there."""
    try:
        return read(place / name)
    except (FileNotFoundError, NotADirectoryError):
        found = "is a file" if place.is_file() else f"has no file {name}" if place.is_dir() else "is not there"
        raise ArtefactError(f"{place} {found}; {instead(place)}") from None


def instead(place: Path) -> str:
    """What to do about a folder that `save_pruned` did not write."""
    if (place / CONFIG).is_file():
        return (
            f"it has a {CONFIG}, as transformers' save_pretrained writes: load it with from_pretrained({str(place)!r})"
        )
    return "expected a folder that save_pruned wrote"
