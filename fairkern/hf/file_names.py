"""How transformers' files hold the parameters of a model: found by having its own conversions move telling numbers.

Of every parameter, transformers is given tensors that say at each place which parameter that is, and which position of
its first, its second, … dimension. Where these come to lie, by which names, is what its files are made of: experts
taken out of a stack, halves of a matrix, interleaved rows, transposed matrices. So no table of families is needed, nor
any memory: a tensor that says the positions of one dimension is that many numbers, expanded.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairkern import options, types
from fairkern.artefacts.shards import open_shards
from fairkern.compact import apply
from fairkern.compact.quantised import QUANTISED
from fairkern.compact.streaming import UNNAMED
from fairkern.errors import InputError
from fairkern.hf.folder import Folder, first_line, open_folder
from fairkern.hf.needed import quiet
from fairkern.results import Plan
from fairkern.surroundings import stage
from fairkern.types import FilePart, Files, FileTensor, Places

_MOST_TURNS = 4  # of parts whose rows are interleaved
_COPIES = (torch.ops.aten.clone.default,)


class _Views(TorchDispatchMode):
    """Copies are views where that does: of expanded tensors they would take the memory of a model."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPIES:
            return torch.ops.aten.alias.default(args[0])
        if func is torch.ops.aten._unsafe_view.default:
            return args[0].reshape(args[1])
        return func(*args, **(kwargs or {}))


@stage
def name_files(plan: types.Plan, folder: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Plan:
    """The same plan, which says how the files of a folder of transformers hold the model (`Plan.files`).

    With it `fk.compact_checkpoint` and `fairkern compact` cut that folder's files, and others of that model, without
    transformers. `fk.hf.prune` writes such plans by itself.

    Args:
        plan: of the causal language model that the folder holds.
        folder: its configuration is read and the model built on the meta device, as are the headers of its weights.
        trust_remote_code: run code of the folder, where transformers does not know the model itself.

    Raises InputError (a folder that lacks something; conversions that move no whole rows), PlanMismatchError (a plan of
    another model), ArtefactError (a damaged file). Cost: seconds; no values are read.
    """
    options.instance("plan", plan, types.Plan, options.PLAN)
    trust = options.flag("trust_remote_code", trust_remote_code)
    looked = open_folder(options.place("folder", folder), trust, quantised=True)
    return named(plan, looked)


def named(plan: types.Plan, folder: Folder) -> Plan:
    """`name_files` for a folder that has been looked at."""
    model = skeleton(folder)
    files = files_of(model, names_of(folder), plan.shapes)
    small = apply(model, plan)
    changes = dict(_changes(_entries(model), _entries(small)))
    return Plan.of(replace(plan, files=replace(files, config=changes)))


def named_if_said(plan: types.Plan, folder: Folder) -> Plan:
    """`named`, or the plan with why its files cannot be named: such a model can be pruned and saved as any other."""
    try:
        return named(plan, folder)
    except InputError as error:
        return Plan.of(replace(plan, result={**plan.result, UNNAMED: str(error)}))


def _entries(model: Any) -> dict[str, Any]:
    """What a configuration's file would say, as JSON."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Entries that differ, by dotted names, with both values."""
    for name in after:
        was, now = before.get(name), after[name]
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{path}{name}.")
        elif was != now:
            yield f"{path}{name}", (was, now)


def skeleton(folder: Folder) -> nn.Module:
    """The model of a folder on the meta device, of any dtype and not quantised."""
    with quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder.path, trust_remote_code=folder.trust_remote_code, local_files_only=True
            )
            if getattr(config, "quantization_config", None) is not None:
                del config.quantization_config
            with torch.device("meta"):
                made: nn.Module = transformers.AutoModelForCausalLM.from_config(
                    config, trust_remote_code=folder.trust_remote_code
                )
        except Exception as error:
            raise InputError(f"{folder.path} cannot be built by transformers: {first_line(error)}") from error
    return made


def names_of(folder: Folder) -> tuple[str, ...] | None:
    """The tensors of a folder's safetensors files; None of one with pickles."""
    if any(not name.endswith(".safetensors") for name in folder.shards):
        return None
    with open_shards(folder.path) as shards:
        return tuple(shards.shapes)


def files_of(model: nn.Module, names: Iterable[str] | None, known: Iterable[str] | None = None) -> Files:
    """How files hold the parameters of a model of transformers, uncut; its values are not looked at.

    `names`: what the files hold, if they are there; else what `save_pretrained` would write. `known`: names that a plan
    has; of a tied parameter one of them counts.

    Raises InputError where files are made of parameters in a way that is not said by rows, halves and transposing.
    """
    every = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    first: dict[int, str] = {}
    wanted = None if known is None else dict.fromkeys(known)
    for name, tensor in every.items():
        if wanted is None or name in wanted:
            first.setdefault(id(tensor), name)
    canonical = {name: first.get(id(tensor), name) for name, tensor in every.items()}
    for pattern in getattr(model, "_keys_to_ignore_on_save", None) or ():
        every.pop(pattern, None)
    numbers = {name: k for k, name in enumerate(every)}
    deepest = max((tensor.dim() for tensor in every.values()), default=0)
    which = _reverted(model, {n: _filled(t, numbers[n]) for n, t in every.items()})
    where = [_reverted(model, {n: _along(t, dim) for n, t in every.items()}) for dim in range(deepest)]
    listed = list(every)
    held: dict[str, FileTensor] = {}
    for name, told in which.items():
        found = _tensor(name, told, [w[name] for w in where], listed, every)
        parts = tuple(replace(part, parameter=canonical[part.parameter]) for part in found.parts)
        held[name] = replace(found, parts=parts)
    present = dict.fromkeys(held if names is None else (_of(name, held) for name in names))
    covered = {part.parameter for name in present if name in held for part in held[name].parts}
    whole = wanted or (canonical.get(name, name) for name, _ in (*every.items(), *model.named_buffers()))
    return Files(
        tensors=tuple(held[name] for name in present if name in held and not _as_it_is(held[name], every)),
        absent=tuple(name for name in dict.fromkeys(whole) if name not in covered),
        ignored=tuple(name for name in names or () if _of(name, held) not in held),
    )


def _of(name: str, held: Mapping[str, FileTensor]) -> str:
    """The tensor that one of the files holds, or holds codes or scales of."""
    for ending in ("", *QUANTISED):
        if name.endswith(ending) and name[: len(name) - len(ending)] in held:
            return name[: len(name) - len(ending)]
    return name


def _reverted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `save_pretrained` makes of a state before it writes it."""
    with quiet(), _Views():
        try:
            revert = importlib.import_module("transformers.core_model_loading").revert_weight_conversion
            return revert(model, state)
        except Exception as error:
            raise InputError(
                f"transformers does not say how files hold a {type(model).__name__}: {first_line(error)}"
            ) from error


def _filled(tensor: Tensor, number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int32, device="cpu").expand(tensor.shape)


def _along(tensor: Tensor, dim: int) -> Tensor:
    """Which position of a dimension each place has; zeros where there is no such dimension."""
    if dim >= tensor.dim():
        return _filled(tensor, 0)
    sizes = [-1 if d == dim else 1 for d in range(tensor.dim())]
    return torch.arange(tensor.shape[dim], dtype=torch.int32, device="cpu").view(sizes).expand(tensor.shape)


def _as_it_is(tensor: FileTensor, every: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensor is a parameter, by its own name."""
    part = tensor.parts[0]
    if len(tensor.parts) > 1 or part.parameter != tensor.name or tensor.shape != tuple(every[tensor.name].shape):
        return False
    return all(
        size == 1 or at == (dim, 0, 1) for dim, (at, size) in enumerate(zip(part.index, tensor.shape, strict=True))
    )


def _tensor(
    name: str, which: Tensor, where: Sequence[Tensor], listed: Sequence[str], every: Mapping[str, Tensor]
) -> FileTensor:
    """What a tensor of the files is made of, by the numbers that have come to lie in it."""
    shape = tuple(which.shape)
    told = [which, *where]
    for along, runs in sorted(_runs(told), key=lambda found: len(found[1])):
        parts = []
        for start, stop, turns in runs:
            for turn in range(turns):
                places = (slice(None),) * along + (slice(start + turn, stop, turns),)
                parts.append(_part([t[places] if shape else t for t in told], listed, every, (stop - start) // turns))
        found = [replace(part, turns=turns) for part, turns in zip(parts, _each(runs), strict=True) if part is not None]
        if len(found) == len(parts):
            return FileTensor(name, shape, tuple(found), along)
    raise InputError(f"how files hold {name} of the shape {shape} is not said by rows, halves and transposing")


_Run = tuple[int, int, int]


def _each(runs: Sequence[_Run]) -> list[int]:
    """In how many turns each part of the runs lies."""
    return [turns for _, _, turns in runs for _ in range(turns)]


def _runs(told: Sequence[Tensor]) -> list[tuple[int, list[_Run]]]:
    """For each dimension the stretches along it, from its origin, that go on in one way, or in turns of several."""
    found = []
    for dim, size in enumerate(told[0].shape):
        lines = torch.stack([_line(t, dim) for t in told]).long()
        runs: list[_Run] = []
        start = 0
        while start < size:
            reach = {turns: _reach(lines[:, start:], turns) for turns in range(1, _MOST_TURNS + 1)}
            turns = max(reach, key=lambda turns: (reach[turns], -turns))
            runs.append((start, start + reach[turns], turns))
            start += reach[turns]
        found.append((dim, runs))
    return found or [(0, [(0, 1, 1)])]


def _reach(lines: Tensor, turns: int) -> int:
    """How many positions, from the first, are of `turns` parts each of which goes on in one way; 0 for none."""
    size = lines.shape[1]
    if size < 2 * turns:
        return 1 if turns == 1 else 0
    steps = lines[:, turns:] - lines[:, :-turns]
    own = steps[:, :turns].repeat(1, -(-steps.shape[1] // turns))[:, : steps.shape[1]]
    goes_on = (steps == own).all(dim=0) & (steps >= 0).all(dim=0) & (steps[0] == 0) & ((steps != 0).sum(dim=0) <= 1)
    ends = (~goes_on).nonzero()
    rounds = (turns + (int(ends[0]) if len(ends) else steps.shape[1])) // turns
    return rounds * turns if rounds > 1 or turns == 1 else 0


def _part(told: Sequence[Tensor], listed: Sequence[str], every: Mapping[str, Tensor], length: int) -> FilePart | None:
    """The part of one parameter that a stretch is; None where it is not one."""
    which, shape = told[0], told[0].shape
    number = int(which[(0,) * which.dim()])
    parameter = listed[number]
    index: list[Places] = []
    taken: set[int] = set()
    for numbers in told[1 : 1 + every[parameter].dim()]:
        moving = [
            dim for dim in range(len(shape)) if bool((_line(numbers, dim) != numbers[(0,) * numbers.dim()]).any())
        ]
        if not moving:
            index.append(int(numbers[(0,) * numbers.dim()]))
            continue
        line = _line(numbers, moving[0]).long()
        first, step = int(line[0]), int(line[1] - line[0])
        if len(moving) > 1 or moving[0] in taken or step < 1 or not torch.equal(line, _steps(first, step, len(line))):
            return None
        taken.add(moving[0])
        index.append((moving[0], first, step))
    if any(size > 1 and dim not in taken for dim, size in enumerate(shape)):
        return None
    expected = [number, *index, *[0] * (len(told) - 1 - len(index))]
    if all(_is(numbers, at) for numbers, at in zip(told, expected, strict=True)):
        return FilePart(parameter, tuple(index), length)
    return None


def _is(numbers: Tensor, at: Places) -> bool:
    """Whether numbers are one everywhere, or go on along one dimension and no other."""
    for dim in range(numbers.dim()):  # what is expanded says the same along there
        if numbers.stride(dim) == 0:
            numbers = numbers.narrow(dim, 0, 1)
    if isinstance(at, int):
        return bool((numbers == at).all())
    dim, first, step = at
    sizes = [-1 if d == dim else 1 for d in range(numbers.dim())]
    return bool((numbers == _steps(first, step, numbers.shape[dim]).view(sizes)).all())


def _steps(first: int, step: int, length: int) -> Tensor:
    return first + step * torch.arange(length, dtype=torch.int64, device="cpu")


def _line(numbers: Tensor, dim: int) -> Tensor:
    """What stands along a dimension, at the origin of all others."""
    return numbers[tuple(slice(None) if d == dim else 0 for d in range(numbers.dim()))]
