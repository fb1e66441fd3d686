"""A checkpoint as it lies on the disk: one safetensors file, or several and their index; read without holding it.

    with open_shards(folder) as shards:
        shards.dtypes["lm_head.weight"], shards.shapes["lm_head.weight"]
        shards.read("lm_head.weight")                 # one tensor, in memory of its own
        shards.read("model.experts.gate_up", 3, 4)    # rows 3 to 4 of its first dimension
        shards.read("lm_head.weight", into=tensor)    # into memory that is there

Nothing is mapped and nothing is kept: what is read is a copy that belongs to whoever asked. `shard_writer.py` writes
such folders, one tensor at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairkern.artefacts.files import parse
from fairkern.artefacts.tensors import TensorFile, open_tensors
from fairkern.errors import ArtefactError, InputError

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Shards:
    """An open checkpoint. `shapes` and `dtypes` have every tensor by its name, in the order of files and bytes."""

    def __init__(self, path: Path, files: Mapping[str, TensorFile], listed: Mapping[str, str]) -> None:
        self.path, self.files = path, dict(files)
        self._file: dict[str, str] = {}
        for name, file in files.items():
            for tensor in file.order:
                if tensor in self._file and tensor not in listed:
                    raise ArtefactError(
                        f"{path}: {tensor} lies in {self._file[tensor]} and in {name}, and no index says which counts"
                    )
                if listed.get(tensor, name) == name:
                    self._file[tensor] = name
        self.shapes: dict[str, tuple[int, ...]] = {t: files[name].shapes[t] for t, name in self._file.items()}
        self.dtypes: dict[str, torch.dtype] = {t: files[name].dtypes[t] for t, name in self._file.items()}

    def file_of(self, name: str) -> str:
        """The file, within the folder, that a tensor lies in."""
        return self._file[name]

    def size_of(self, name: str) -> int:
        """Bytes of a tensor."""
        return int(torch.Size(self.shapes[name]).numel()) * self.dtypes[name].itemsize

    def read(self, name: str, start: int = 0, stop: int | None = None, into: Tensor | None = None) -> Tensor:
        """A tensor, or positions `start` to `stop` of its first dimension, on the CPU in memory of its own.

        `into`: a contiguous CPU tensor of that dtype and shape, which is filled and returned. Several threads may read
        at once. Raises ArtefactError where a file has become shorter. Cost: one read of these rows, no sum.
        """
        return self.files[self._file[name]].rows(name, start, stop, into)


@contextmanager
def open_shards(path: str | os.PathLike[str]) -> Iterator[Shards]:
    """Opens a checkpoint: a folder with an index (or one file) of safetensors, that index, or such a file.

    All files are opened, and their headers read and checked; values are read on demand (`Shards.read`). Of a folder,
    `model.safetensors.index.json` counts, else `model.safetensors`, else the one index or the one file that is there.

    Raises:
        InputError: nothing is there, or only pickles (`.bin`, `.pt`); a file that the index names is missing.
        ArtefactError: a file is truncated or of another format, lacks what the index looks for there, or a header
            contradicts itself.
    """
    given = Path(path)
    found = _found(given)
    folder, listed = found.parent, {}
    names: list[str] = [found.name]
    if found.suffix == ".json":
        listed = _listed(found)
        names = sorted(set(listed.values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise InputError(
                f"{folder} lacks {absent[0]}, one of {len(names)} files of its weights by {found.name}; fetch the "
                "whole folder again"
            )
    with ExitStack() as stack:
        files = {name: stack.enter_context(open_tensors(folder / name)) for name in names}
        for tensor, name in listed.items():
            if tensor not in files[name].shapes:
                raise ArtefactError(
                    f"{folder / name} lacks {tensor}, which the index beside it looks for there; fetch it again"
                )
        yield Shards(folder, files, listed)


def _found(path: Path) -> Path:
    """The index or the file that says where tensors are."""
    if path.is_file():
        if path.suffix in _PICKLES:
            raise _pickled(path)
        return path
    if not path.is_dir():
        raise InputError(f"{path} is not there; expected a folder with safetensors files, or such a file")
    for name in (INDEX, SINGLE):
        if (path / name).is_file():
            return path / name
    for ending in (".safetensors.index.json", ".safetensors"):
        named = sorted(file for file in path.iterdir() if file.name.endswith(ending) and file.is_file())
        if len(named) == 1:
            return named[0]
        if named:
            raise InputError(
                f"{path} has {len(named)} files of the ending {ending} and no {INDEX} that says which belong "
                f"together: name one of them ({named[0].name}, …)"
            )
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _pickled(pickles[0])
    raise InputError(f"{path} has no safetensors file (expected {SINGLE}, or shards and {INDEX})")


def _pickled(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle, which runs code when it is read and cannot be read in parts: load the model once and "
        "save it as safetensors (save_pretrained does)"
    )


def _listed(path: Path) -> dict[str, str]:
    """The file of every tensor, as an index has it: plain names of files beside it."""
    try:
        content: Any = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is truncated or not JSON ({error}); fetch it again") from None
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ArtefactError(f"{path} has no weight_map of names and files; fetch it again")
    for name in listed.values():
        if Path(name).name != name or name in (".", ".."):
            raise ArtefactError(f"{path} names {json.dumps(name)}, which is no file beside it; fetch it again")
        if not name.endswith(".safetensors"):
            raise _pickled(path.parent / name)
    return listed
