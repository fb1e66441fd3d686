"""A checkpoint cut by a plan, tensor by tensor, without the model: files in, files out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairkern import options
from fairkern.artefacts.files import json_file, parse
from fairkern.artefacts.folders import check_out, copy_beside
from fairkern.artefacts.plans import plan_payload
from fairkern.artefacts.shard_writer import LARGEST, MANIFEST, ShardWriter
from fairkern.artefacts.shards import Shards, open_shards
from fairkern.artefacts.sums import Sum
from fairkern.artefacts.tensors import TensorFile
from fairkern.artefacts.writing import PARTIAL, resumed_folder
from fairkern.compact.quantised import Quantised, refuse_packed
from fairkern.compact.stored import Stored, StoredCut
from fairkern.compact.stored_config import config_after
from fairkern.errors import ArtefactError, InputError, PlanMismatchError
from fairkern.surroundings import stage
from fairkern.types import Plan

CONFIG, PLAN, GENERATION = "config.json", "plan.json", "generation_config.json"
UNNAMED = "files_unnamed"
"""The entry of a plan's result that says why it does not say how files hold the model."""

_CHUNK = 1 << 21  # bytes that are read, cut and written at a time: so few that they stay in the caches between
_SLACK = 1 << 24  # bytes beside the weights that a disk should have room for


class Compacted(NamedTuple):
    """What was written: sums of files by their names, and bytes of tensors before and after."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    before: int
    after: int
    ignored: tuple[str, ...]
    absent: tuple[str, ...]


@stage
def compact_checkpoint(
    checkpoint: str | os.PathLike[str], plan: Plan, out: str | os.PathLike[str], *, largest: int = LARGEST
) -> Compacted:
    """Cut a checkpoint by a plan, file by file, without its model: what `apply` and saving leave, for a little memory.

    Tensors are read, cut and written some rows at a time, in the order of the files. `out` appears whole or not at all;
    until then what is finished lies in `OUT.partial`, and the same call goes on there after a kill or a full disk, to
    the same bytes: shards are held against their sums, and those that differ are written anew. The weights are those of
    the checkpoint: compensation takes data, and is not done here (`prune`).

    Args:
        checkpoint: a folder with safetensors (shards and their index, or one file), or such a file. No pickles.
        plan: of the model that the checkpoint holds. It says how files hold the parameters (`Plan.files`): plans of
            `fk.hf.prune` do, `fk.hf.name_files` adds it to others of models of transformers. Where it says nothing,
            tensors are called what the model calls them.
        out: a new or an empty folder, not in the checkpoint. It gets the weights in shards and their index,
            plan.json, config.json with the plan's changes, tokenizer, chat template and licence, and manifest.json:
            SHA-256 of every file that was read and written, what had no place in the model (`ignored`), and what no
            file holds (`absent`: buffers that are not saved, tied names).
        largest: bytes of a shard's tensors; one that is larger lies alone.

    Returns:
        Sums of the files that were read and written, bytes of tensors before and after.

    Raises:
        PlanMismatchError: a plan of another checkpoint: names the first tensor or axis that differs.
        InputError: pickles, int4 packs, a missing shard; fp8 or mxfp4 of which the plan keeps parts of blocks (says how
            many positions are one); an `out` that is not empty, in the checkpoint, or has no room.
        ArtefactError: a file is truncated, contradicts itself or its index, or shrinks meanwhile.

    Cost: one read and one sum of every byte, one write and one sum of what is left. Memory: some 100 MB, or of a tensor
    of longer rows (experts in a stack) one of them before and after; all of one whose rows take turns.
    """
    options.instance("plan", plan, Plan, options.PLAN)
    source = Path(options.place("checkpoint", checkpoint))
    _check_beside(source, Path(options.place("out", out)))
    options.whole("largest", largest, 1)
    with open_shards(source) as shards:
        config = _config(shards.path)
        refuse_packed(shards.shapes, config or {}, shards.path)
        cuts, absent = _cuts(shards, plan, config or {})
        left = _left(shards, plan, cuts)
        later = None if config is None else config_after(config, plan)
        ignored = tuple(name for name in shards.shapes if name not in cuts)
        described = json_file("plan", plan_payload(plan))
        job = {"compacted_by": hashlib.sha256(described).hexdigest(), "largest": largest}
        target = check_out(out)
        with _said_of(target), resumed_folder(target, MANIFEST) as place:
            told_apart = {**job, "modified": _modified(shards)}
            with ShardWriter(place, left, job=told_apart, largest=largest) as writer:
                _check_room(place, target, writer)
                inputs = _stream(shards, cuts, writer)
                _beside(place, shards.path, described, later)
                outputs = _finish(place, writer, job, inputs=inputs, ignored=list(ignored), absent=list(absent))
    before = sum(map(shards.size_of, shards.shapes))
    after = sum(int(torch.Size(shape).numel()) * dtype.itemsize for dtype, shape in left.values())
    return Compacted(inputs, outputs, before, after, ignored, absent)


def _check_beside(source: Path, out: Path) -> None:
    """Raises InputError for a folder to write that is the checkpoint's, or within it."""
    folder, target = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if folder == target or folder in target.parents:
        raise InputError(f"cannot write {out}: it lies in the checkpoint {folder}; name a folder beside it")


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is truncated or not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a JSON {type(content).__name__}; expected an object; fetch it again")
    return content


def _cuts(shards: Shards, plan: Plan, config: Mapping[str, Any]) -> tuple[dict[str, StoredCut | None], tuple[str, ...]]:
    """What is left of every tensor that the plan knows, None for nothing, and what the plan has and no file holds.

    Raises PlanMismatchError where files and plan are not of one model: a tensor that one of them lacks, another shape.
    """
    stored, found = Stored(plan), dict[str, int]()
    given = config.get("quantization_config")
    block = given.get("weight_block_size") if isinstance(given, dict) else None
    quantised = Quantised(stored, shards.shapes, shards.dtypes, block)
    cuts: dict[str, StoredCut | None] = {}
    for name, shape in shards.shapes.items():
        weight = quantised.weight_of(name)
        tensor = None if weight is None else stored.tensor(weight)
        if tensor is not None:
            cuts[name] = quantised.cut(name)
            held = {} if weight in shards.shapes else stored.parameters(tensor)
        else:
            tensor = stored.tensor(name)
            if tensor is None:
                if name in stored.ignored:
                    continue
                raise PlanMismatchError(
                    f"{shards.path} has a tensor {name} of shape {shape} that the plan, made for {plan.model}, does "
                    f"not know{_unnamed(plan)}"
                )
            _check_shape(name, shape, tensor.shape, plan)
            cuts[name] = stored.cut(tensor)
            held = stored.parameters(tensor)
        for parameter, count in held.items():
            found[parameter] = found.get(parameter, 0) + count
    return cuts, _absent(shards, plan, found)


def _absent(shards: Shards, plan: Plan, found: Mapping[str, int]) -> tuple[str, ...]:
    """What the plan has and no file holds: buffers that are not saved, tied names; PlanMismatchError for more."""
    said = set(plan.files.absent) if plan.files is not None else None
    changed = {item.axis.tensor for item in plan.axes if item.removed.size}
    absent = []
    for name, shape in plan.shapes.items():
        if found.get(name, 0) >= int(torch.Size(shape).numel()) and name in found:
            continue
        if name in said if said is not None else (name not in changed and name not in found):
            absent.append(name)
            continue
        part = "a part" if name in found else "nothing"
        shard = len(shards.files) == 1 and any("-of-" in file for file in shards.files)
        where = next(iter(shards.files)) if shard else shards.path
        again = "that is one file of several, name the folder" if shard else "fetch the whole checkpoint again"
        raise PlanMismatchError(
            f"{where} holds {part} of {name} of shape {tuple(shape)}, which the plan, made for {plan.model}, "
            f"cuts or expects: {again}, or give the checkpoint of the plan{_unnamed(plan)}"
        )
    return tuple(absent)


def _unnamed(plan: Plan) -> str:
    if plan.files is not None:
        return ""
    if UNNAMED in plan.result:
        return f". The plan does not say which names files have: {plan.result[UNNAMED]}"
    return (
        ". The plan does not say which names files have: where it is of a model of transformers, "
        "fk.hf.name_files(plan, FOLDER) adds them"
    )


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], plan: Plan) -> None:
    if shape == expected:
        return
    where = f"{name} has shape {shape} here, the plan expects {expected}"
    if len(shape) == len(expected):
        dim = next(d for d in range(len(shape)) if shape[d] != expected[d])
        where = f"{name} dim {dim} has {shape[dim]} positions here, the plan expects {expected[dim]}"
    raise PlanMismatchError(f"{where}; the plan was made for another {plan.model} than this checkpoint")


def _left(
    shards: Shards, plan: Plan, cuts: Mapping[str, StoredCut | None]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of every tensor that is left, by the names that they have then."""
    left: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, cut in cuts.items():
        if cut is None:
            continue
        if cut.name in left:
            raise PlanMismatchError(f"two tensors of {shards.path} would be called {cut.name}, {name} one of them")
        left[cut.name] = (shards.dtypes[name], cut.left)
    if not left:
        raise PlanMismatchError(f"the plan, made for {plan.model}, leaves nothing of {shards.path}")
    return left


def _modified(shards: Shards) -> dict[str, list[int]]:
    """What tells files from others of the same names without reading them again."""
    return {name: _stamp(shards.path / name) for name in shards.files}


def _stamp(path: Path) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _check_room(place: Path, target: Path, writer: ShardWriter) -> None:
    free, needed = shutil.disk_usage(place).free, writer.to_come + _SLACK
    if free < needed:
        if [path.name for path in place.iterdir()] == [MANIFEST]:  # nothing to go on with
            (place / MANIFEST).unlink()
        raise InputError(
            f"cannot write {target}: {needed:,} bytes are still to come, and the disk has {free:,}; make room, and run "
            "the same again"
        )


def _stream(shards: Shards, cuts: Mapping[str, StoredCut | None], writer: ShardWriter) -> dict[str, str]:
    """Reads every file once, from its first byte to its last, and writes what is left; the sum of each file."""
    sums: dict[str, str] = dict(writer.notes.get("inputs", {}))
    before = _modified(shards)
    with ThreadPoolExecutor(1) as pool:
        for file_name, file in shards.files.items():
            own = {name: cuts.get(name) for name in file.order if shards.file_of(name) == file_name}
            if file_name in sums and all(cut is None or writer.done(cut.name) for cut in own.values()):
                continue
            state = Sum(pool)
            state.update(memoryview(file.head))
            for name in file.order:
                cut = own.get(name)
                missing = cut is not None and not writer.done(cut.name)
                for start, rows in _chunks(file, name, whole=missing and cut is not None and cut.at_once):
                    state.update(_memory(rows))
                    if cut is not None and missing:
                        writer.append(cut.name, cut.of_rows(rows, start))
            sums[file_name] = state.hexdigest()
            if _stamp(shards.path / file_name) != before[file_name]:
                raise ArtefactError(
                    f"{shards.path / file_name} was written to while it was read: what was made of it is neither "
                    "the old nor the new file's; run the same again when it stays as it is"
                )
            writer.note(inputs=sums)
    return sums


def _chunks(file: TensorFile, name: str, whole: bool) -> Iterator[tuple[int, Tensor]]:
    """A tensor, some rows of its first dimension at a time, and where they begin."""
    shape, dtype = file.shapes[name], file.dtypes[name]
    if not shape or whole:
        rows = file.rows(name)
        file.ask_ahead(name, shape[0] if shape else 1)
        yield 0, rows
        return
    row = int(torch.Size(shape[1:]).numel()) * dtype.itemsize
    step = max(_CHUNK // max(row, 1), 1)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        rows = file.rows(name, start, stop)
        file.ask_ahead(name, stop)  # while these are summed up, cut and written
        yield start, rows


def _memory(rows: Tensor) -> memoryview:
    return rows.reshape(-1).view(torch.uint8).numpy().data


def _beside(place: Path, source: Path, plan: bytes, config: Mapping[str, Any] | None) -> None:
    """What lies beside the weights: the plan, the configuration, tokenizer, chat template and licence."""
    (place / PLAN).write_bytes(plan)
    if config is not None:
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (place / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        copy_beside(source, place, code=bool(config.get("auto_map")))
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, place / GENERATION)


def _finish(place: Path, writer: ShardWriter, job: Mapping[str, Any], **notes: Any) -> dict[str, str]:
    """The index, and the manifest, which says the sum of each file."""
    weights = writer.finish()
    others = (path for path in sorted(place.rglob("*")) if path.is_file() and path.name != MANIFEST)
    beside = {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in others
        if path.name not in weights
    }
    writer.conclude(job, notes={**notes, "beside": beside, "compensation": "none"})
    return {**weights, **beside}


@contextmanager
def _said_of(target: Path) -> Iterator[None]:
    """What the system refuses, as an error of one line that says how to go on."""
    try:
        yield
    except OSError as error:
        left = Path(f"{target}{PARTIAL}")
        stays = f"; what is finished stays in {left}: run the same again to go on" if left.is_dir() else ""
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(f"cannot write {target}: {error.strerror or error}{where}{stays}") from error
