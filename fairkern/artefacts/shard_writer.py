"""Tensors into shards of safetensors, one at a time, in any order; a run that was killed goes on where it was.

    with resumed_folder(out, MANIFEST) as place:             # out.partial, which becomes out at the end
        writer = ShardWriter(place, {name: (dtype, shape), …}, job={"what": "is made of what"})
        for name in names:
            if not writer.done(name):                        # lies in a shard that an earlier run finished
                writer.write(name, tensor)                   # or writer.append(name, rows) until it is whole
        writer.finish()                                      # the index

What lies where follows from names, dtypes and shapes alone, so that the same tensors give the same bytes in whatever
order they come. A shard is there whole or not at all; `manifest.json` in the folder has the sum of each, and what the
folder is made of (`job`): a run with the same `job` goes on with the shards that still have their sums, another one
begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fairkern.artefacts.files import plain, read_json, write_json
from fairkern.artefacts.shards import INDEX, SINGLE
from fairkern.artefacts.sums import Sum
from fairkern.artefacts.tensors import Entry, bytes_of, entry_of, header_of
from fairkern.errors import ArtefactError, InputError

MANIFEST = "manifest.json"
LARGEST = 5 * 10**9
"""Bytes of tensors in a shard, at most: as transformers has it. A tensor that is larger has a shard of its own."""

_UNFINISHED = ".unfinished"
_PART = 1 << 24  # bytes that are summed up while they are written
_AHEAD = 1 << 26  # bytes after which the disk gets what was written of a shard
_FORMAT = {"format": "pt"}  # transformers asks for it

Described = tuple[torch.dtype, Sequence[int]]


@dataclass
class _Shard:
    """A file that is being written: where its tensors lie, and how far it has been summed up."""

    name: str
    entries: dict[str, Entry]
    texts: Mapping[str, str]
    left: int = 0  # bytes that are still to come
    begin: int = 0
    summed: int = 0
    sum: Sum | None = None
    ahead: list[Future[None]] = field(default_factory=list)  # parts on their way to the disk
    descriptor: int | None = None
    closed: bool = False  # whole, though perhaps not on the disk yet

    def __post_init__(self) -> None:
        self.head = header_of(self.entries, self.texts)
        self.begin = 8 + len(self.head)
        self.left = max(entry.stop for entry in self.entries.values())
        self.size = self.begin + self.left


class ShardWriter:
    """Shards in a folder. Use as a context manager, or call `close`, where a run may end early.

    Args:
        folder: where; made by the caller (`resumed_folder`). What other jobs left there is removed.
        tensors: dtype and shape of every tensor that will come, in the order of the shards.
        job: what the folder is made of, as plain JSON: sums of inputs, of the plan, and the like.
        largest: bytes of tensors in a shard.
        texts: of each file's metadata.

    Raises InputError for a dtype that the format does not have, OSError.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tensors: Mapping[str, Described],
        *,
        job: Mapping[str, Any],
        largest: int = LARGEST,
        texts: Mapping[str, str] = _FORMAT,
    ) -> None:
        self.folder = Path(folder)
        self._job, self.largest = plain(job, "job"), largest
        shards = _shared_out(tensors, largest, texts)
        self._shards = {shard.name: shard for shard in shards}
        self._of = {name: shard for shard in shards for name in shard.entries}
        self._written: dict[str, int] = dict.fromkeys(tensors, 0)  # bytes of each that have been written
        self._summing, self._closing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._closed: tuple[_Shard, Future[None]] | None = None  # whole, and on its way to the disk
        self.files, self.notes = self._taken_up()
        for name in tensors:
            if self.done(name):
                self._written[name] = self._bytes(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def order(self) -> list[str]:
        """All names, in the order of files and bytes: written so, each file is read no second time for its sum."""
        return list(self._of)

    @property
    def to_come(self) -> int:
        """Bytes of all files that are not finished."""
        return sum(shard.size for shard in self._shards.values() if shard.name not in self.files)

    def done(self, name: str) -> bool:
        """Whether a tensor lies in a shard that is finished."""
        shard = self._of[name]
        if self._closed is not None and self._closed[0] is shard:
            self._settle()
        return shard.name in self.files

    def write(self, name: str, tensor: Tensor) -> None:
        """A whole tensor, of any device. Raises InputError for another dtype or shape than was said, OSError."""
        entry = self._of[name].entries[name]
        if tuple(tensor.shape) != entry.shape or self._written[name]:
            raise InputError(f"{name} is {tuple(tensor.shape)}; expected {entry.shape}, once")
        self.append(name, tensor)

    def append(self, name: str, rows: Tensor) -> None:
        """The next rows of a tensor, along its first dimension. Rows of a finished shard are passed over.

        They are summed up in another thread, and must not change before the next call.

        Raises InputError for another dtype or shape than was said, OSError. Cost: one copy to the file and one sum;
        what comes out of order is read again for the sum.
        """
        shard = self._of[name]
        entry = shard.entries[name]
        if shard.name in self.files or shard.closed:
            return
        data, at = bytes_of(rows), self._written[name]
        fits = tuple(rows.shape[1:]) == entry.shape[1:] and rows.dim() == len(entry.shape)
        if not fits or entry_of(name, rows.dtype, (), 0).dtype != entry.dtype or at + len(data) > self._bytes(name):
            raise InputError(
                f"{name}: rows {tuple(rows.shape)} of {rows.dtype} behind {at} bytes; expected {entry.dtype} of the "
                f"shape {entry.shape}"
            )
        self._put(shard, shard.begin + entry.start + at, data)
        self._written[name] += len(data)
        shard.left -= len(data)
        if not shard.left:
            self._close_shard(shard)

    def note(self, **notes: Any) -> None:
        """What the manifest says besides, from the next finished shard on."""
        self.notes.update(plain(notes, "notes"))

    def finish(self) -> Mapping[str, str]:
        """Writes the index, where there are several shards, and the manifest; the sum (SHA-256) of every shard.

        Raises InputError where a tensor is not there yet, OSError.
        """
        for shard in self._shards.values():
            if shard.name not in self.files and not (shard.left or shard.closed):  # nothing but empty tensors
                self._put(shard, shard.begin, memoryview(b""))
                self._close_shard(shard)
        self._settle()
        lacking = next((name for name in self._of if not self.done(name)), None)
        if lacking is not None:
            raise InputError(f"{lacking} was not written")
        self.close()
        if len(self._shards) > 1:
            total = sum(entry.stop - entry.start for shard in self._shards.values() for entry in shard.entries.values())
            listed = {name: self._of[name].name for name in sorted(self._of)}
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": listed}, indent=2, ensure_ascii=False)
            _durable(self.folder / INDEX, f"{text}\n".encode())
        self._record()
        return dict(self.files)

    def conclude(self, job: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """The manifest once more, in its last form: without what only told runs apart. Behind `finish`."""
        self._job, self.notes = plain(job, "job"), plain(notes, "notes")
        self._record()

    def close(self) -> None:
        """Closes what is open. Unfinished shards stay as they are, and are begun anew next time."""
        try:
            self._settle()
        finally:
            self._summing.shutdown()
            self._closing.shutdown()
            for shard in self._shards.values():
                if shard.descriptor is not None:
                    os.close(shard.descriptor)
                    shard.descriptor = None

    def _bytes(self, name: str) -> int:
        entry = self._of[name].entries[name]
        return entry.stop - entry.start

    def _put(self, shard: _Shard, at: int, data: memoryview) -> None:
        """Bytes at a place of a file; summed up meanwhile if they follow what has been."""
        if shard.descriptor is None:
            path = self.folder / f"{shard.name}{_UNFINISHED}"
            shard.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            self._put(shard, 0, memoryview(len(shard.head).to_bytes(8, "little") + shard.head))
        for part in (data[k : k + _PART] for k in range(0, len(data), _PART)):
            if at == shard.summed:
                shard.sum = shard.sum or Sum(self._summing)
                shard.sum.update(part)
                shard.summed += len(part)
            _write(shard.descriptor, part, at)
            at += len(part)
            if at // _AHEAD > (at - len(part)) // _AHEAD:
                shard.ahead.append(self._closing.submit(os.fdatasync, shard.descriptor))

    def _close_shard(self, shard: _Shard) -> None:
        """What is whole goes to the disk, under its name, while others are written; then it is in the manifest."""
        assert shard.descriptor is not None
        assert shard.sum is not None
        while shard.summed < shard.size:
            part = memoryview(bytearray(_PART))
            read = os.preadv(shard.descriptor, [part], shard.summed)
            shard.sum.update(part[:read])
            shard.summed += read
        self._settle()
        descriptor, shard.descriptor, shard.closed = shard.descriptor, None, True
        self._closed = shard, self._closing.submit(self._to_disk, shard.name, descriptor, shard.ahead)

    def _to_disk(self, name: str, descriptor: int, ahead: Sequence[Future[None]]) -> None:
        try:
            for part in ahead:
                part.result()  # what it raised the system does not say again
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(self.folder / f"{name}{_UNFINISHED}", self.folder / name)

    def _settle(self) -> None:
        """The shard that is on its way has come to the disk, and is in the manifest."""
        if self._closed is not None:
            shard, done = self._closed
            self._closed = None
            done.result()
            assert shard.sum is not None
            self.files[shard.name] = shard.sum.hexdigest()
            self._record()

    def _record(self) -> None:
        sums = {name: self.files[name] for name in self._shards if name in self.files}
        write_json(self.folder / MANIFEST, "shards", {"job": self._job, "files": sums, "notes": self.notes})

    def _taken_up(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Shards that an earlier run of this job finished, and its notes; what another job left is removed."""
        if (self.folder / MANIFEST).exists():
            said = _said(self.folder / MANIFEST)
            if said is not None and said["job"] == self._job and said["files"].keys() <= self._shards.keys():
                whole = {name: total for name, total in said["files"].items() if self._holds(name, total)}
                for name in said["files"].keys() - whole.keys():
                    (self.folder / name).unlink(missing_ok=True)
                return whole, said["notes"]
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.files, self.notes = {}, {}
        self._record()
        return {}, {}

    def _holds(self, name: str, total: str) -> bool:
        """Whether a shard has the size and the sum that it had when it was finished."""
        path = self.folder / name
        return path.is_file() and path.stat().st_size == self._shards[name].size and _sum_of(path) == total


def _said(path: Path) -> dict[str, Any] | None:
    """A manifest; None for one that is damaged, so that work begins anew."""
    try:
        return read_json(path, "shards")
    except ArtefactError:
        return None


def _sum_of(path: Path) -> str:
    state, part = hashlib.sha256(), memoryview(bytearray(_PART))
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(part):
            state.update(part[:read])
    return state.hexdigest()


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _durable(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _shared_out(tensors: Mapping[str, Described], largest: int, texts: Mapping[str, str]) -> list[_Shard]:
    """Tensors in their order, as many to a file as there is room for; within it the largest elements first."""
    held: list[list[str]] = []
    room = 0
    for name, (dtype, shape) in tensors.items():
        size = int(torch.Size(shape).numel()) * dtype.itemsize
        if not held or size > room:
            held.append([])
            room = largest
        held[-1].append(name)
        room -= size
    shards = []
    for number, names in enumerate(held, 1):
        file = SINGLE if len(held) == 1 else f"model-{number:05d}-of-{len(held):05d}.safetensors"
        entries, end = {}, 0
        for name in sorted(names, key=lambda name: -tensors[name][0].itemsize):
            entries[name] = entry_of(name, *tensors[name], end)
            end = entries[name].stop
        shards.append(_Shard(file, entries, texts))
    return shards
