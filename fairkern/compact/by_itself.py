"""A pruned folder loaded by itself: the unpruned architecture is built as its files say."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fairkern.artefacts import read_json
from fairkern.artefacts.builds import BUILD, DTYPES, NAME, read_build
from fairkern.artefacts.files import sum_of
from fairkern.artefacts.plans import read_plan_payload
from fairkern.artefacts.tensors import open_tensors
from fairkern.compact import builders
from fairkern.compact.builds import most_parameters
from fairkern.compact.checkpoint import loaded_into
from fairkern.compact.descriptors import check, check_pruned
from fairkern.compact.weights_file import CONFIG, PLAN, WEIGHTS, present
from fairkern.errors import ArtefactError, InputError, PlanMismatchError
from fairkern.model.described import module_digests
from fairkern.model.tensors import not_saved
from fairkern.options import several
from fairkern.types import Build, Plan


def load_by_itself(folder: str | os.PathLike[str], *, trust: bool, device: torch.device) -> nn.Module:
    """The pruned model of a folder, in eval mode, with the dtypes that it was saved in.

    The architecture is that of build.json; a model of torchvision, timm or transformers is built without memory for its
    parameters, any other callable is imported and called, if it is trusted, as it is. On meta the weights are not read,
    and what the file does not have (tables, masks) lies on the CPU with its values.

    Raises InputError (no build.json, with what to pass; a callable that is not trusted; what cannot be built here),
    ArtefactError, PlanMismatchError (what is built is not what was cut; names the first axis that differs).
    """
    place = Path(folder)
    payload = present(place, PLAN, lambda path: read_json(path, "plan"))
    plan, plan_sum = read_plan_payload(payload, place / PLAN), sum_of(payload)
    build = _build_of(place, plan_sum)
    if build is None:
        return _of_transformers(place, plan, device)
    said = f"{place / (BUILD if build.modules else CONFIG)} says"
    fresh = builders.make(build, said, trust=trust, most=most_parameters(plan))
    try:
        check(fresh, plan)
    except PlanMismatchError as error:
        others = builders.differing_versions(build)
        raise PlanMismatchError(
            f"{said} {build.name}, which makes another architecture than was cut: {error}"
            + (f" (written with {others})" if others else "")
        ) from None
    small = loaded_into(fresh, place, plan, plan_sum, device=device)
    _cast_tables(small, build.buffers)
    if device.type != "meta":
        small = small.to(device)
    _compare(small, build, said)
    return small.eval()


def _build_of(place: Path, plan_sum: str) -> Build | None:
    """None of a folder that transformers wrote, whose configuration is that of the cut model."""
    try:
        return read_build(place / BUILD, plan_sum)
    except FileNotFoundError:
        pass
    if (place / CONFIG).is_file():
        return _configured(place) if _is_ours(place / WEIGHTS) else None
    raise InputError(
        f"{place} has no {BUILD}, which says how the unpruned architecture is made: pass that, with any weights, as "
        "load_pruned(model, folder), or save the model anew with save_pruned(small, plan, folder, build=…)"
    )


def _is_ours(weights: Path) -> bool:
    """Whether `save_pruned` wrote them: a configuration beside them is that of the uncut model."""
    if not weights.is_file():
        return False
    with open_tensors(weights) as file:
        return "fairkern" in file.metadata


def _configured(place: Path) -> Build:
    """The model of a transformers folder's configuration. Raises InputError where that names no class of its own."""
    path = place / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is truncated or not JSON ({error}); write the folder again") from None
    if not isinstance(fields, dict):
        raise ArtefactError(f"{path} holds a JSON {type(fields).__name__}; expected an object; write the folder again")
    named = fields.get("architectures")
    if not (isinstance(named, list) and named and isinstance(named[0], str) and NAME.fullmatch(f"a:{named[0]}")):
        raise InputError(f"{path} names no class (architectures): load the folder with from_pretrained of its class")
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    return Build(f"transformers:{named[0]}", fields, dtype if dtype in DTYPES else "float32")


def _of_transformers(place: Path, plan: Plan, device: torch.device) -> nn.Module:
    """A folder that transformers wrote, with a plan beside it (`fk.hf.prune`), as `from_pretrained` loads it: from
    safetensors alone, and without any code that is not transformers' own."""
    build, said = _configured(place), f"{place / CONFIG} says"
    bare = builders.make(build, said, trust=False, most=most_parameters(plan))
    small = bare if device.type == "meta" else builders.pretrained(place, build, said).to(device)
    try:
        check_pruned(small, plan)
    except PlanMismatchError as error:
        raise PlanMismatchError(f"{said} {build.name}, which is not what {place / PLAN} leaves: {error}") from None
    return small.eval()


def _cast_tables(small: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Buffers that no file has, in the dtypes that they had."""
    known = {
        str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
    }
    for name, tensor in not_saved(small).items():
        dtype = known.get(dtypes.get(name, ""), tensor.dtype)
        if dtype != tensor.dtype and dtype.is_floating_point and tensor.is_floating_point():
            path, _, last = name.rpartition(".")
            small.get_submodule(path)._buffers[last] = tensor.to(dtype)


def _compare(small: nn.Module, build: Build, said: str) -> None:
    """Warns where shapes agree and modules do not: another activation, another attribute that counts in forward."""
    if not build.modules:  # of a folder that is older than builds
        return
    found = module_digests(small)
    differ = [path for path in {**build.modules, **found} if build.modules.get(path) != found.get(path)]
    if not differ:
        return
    others = builders.differing_versions(build)
    because = f"written with {others}" if others else "settings were changed after it was built, or its code was"
    warnings.warn(
        f"{said} {build.name}; shapes agree, but classes or attributes of modules are not what was saved "
        f"({several([path or 'the model itself' for path in differ])}; {because}): compare what it computes before "
        "relying on it",
        stacklevel=2,
    )
