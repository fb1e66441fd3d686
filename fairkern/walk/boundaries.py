"""What passes from one segment to the next, batch by batch: in memory, or in files of a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.model.nested import is_cache


@dataclass(frozen=True)
class _Slot:
    """Where a tensor stood, and its number among those that are kept."""

    number: int


@dataclass(frozen=True)
class _OnDisk:
    """A tensor in a file: the order of its dimensions in memory, so that it comes back laid out as it was."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]

    def read(self) -> Tensor:
        laid = torch.empty([self.shape[d] for d in self.order], dtype=self.dtype, device="cpu")
        with open(self.path, "rb", buffering=0) as file:
            _read_into(file, memoryview(_bytes_of(laid)), self.path)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return laid.permute(back)


class Boundaries:
    """Nested values with tensors under keys of the caller's; `folder`: the tensors lie in files there.

    A context manager: files are in a folder of their own within `folder`, which is removed at the end. Reading makes
    new tensors on the CPU, laid out as they were; nothing is mapped into memory. In memory they are the same objects.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._within = None if folder is None else Path(folder)
        self._folder: Path | None = None
        self._held: dict[Hashable, tuple[Any, list[Tensor | _OnDisk]]] = {}
        self._written = 0

    def __enter__(self) -> Boundaries:
        if self._within is not None:
            self._within.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".fairkern-walk-", dir=self._within))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def count(self, key: Hashable) -> int:
        """How many tensors are kept under a key."""
        return len(self._held[key][1])

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value; the same tensor in several places of it is kept once. What had the key goes."""
        self.drop(key)
        form, tensors = _taken_apart(value)
        self._held[key] = form, [self._kept(tensor.detach()) for tensor in tensors]

    @staticmethod
    def tensors(value: Any) -> list[Tensor]:
        """Those that `put` keeps of a value, in their order."""
        return _taken_apart(value)[1]

    def get(
        self,
        key: Hashable,
        device: torch.device | None = None,
        change: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Any:
        """The value again, its tensors on `device` (None: where they are kept); `change(number, tensor)` gives what
        stands in the place of each."""
        form, kept = self._held[key]
        tensors = [held.read() if isinstance(held, _OnDisk) else held for held in kept]
        if change is not None:
            tensors = [change(number, tensor) for number, tensor in enumerate(tensors)]
        if device is not None:
            tensors = [tensor.to(device) for tensor in tensors]
        return _mapped(form, _Slot, lambda slot: tensors[slot.number])

    def drop(self, key: Hashable) -> None:
        """Forget a value, if there is one."""
        _, kept = self._held.pop(key, (None, ()))
        for held in kept:
            if isinstance(held, _OnDisk):
                held.path.unlink()

    def _kept(self, tensor: Tensor) -> Tensor | _OnDisk:
        if self._folder is None or tensor.layout is not torch.strided or not tensor.numel():
            return tensor
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], d)))
        path = self._folder / f"{self._written}.bin"
        self._written += 1
        laid = tensor.cpu().resolve_conj().resolve_neg().permute(order).contiguous()
        with open(path, "wb", buffering=0) as file:
            _write_all(file, memoryview(_bytes_of(laid)))
        return _OnDisk(path, tensor.dtype, tuple(tensor.shape), order)


def _taken_apart(value: Any) -> tuple[Any, list[Tensor]]:
    """A value with slots where its tensors were, and these, each once."""
    tensors: list[Tensor] = []
    known: dict[int, int] = {}

    def slot(tensor: Tensor) -> _Slot:
        if id(tensor) not in known:
            known[id(tensor)] = len(tensors)
            tensors.append(tensor)
        return _Slot(known[id(tensor)])

    return _mapped(value, Tensor, slot), tensors


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _write_all(file: Any, data: memoryview) -> None:
    at = 0
    while at < len(data):
        at += file.write(data[at:])


def _read_into(file: Any, room: memoryview, path: Path) -> None:
    at = 0
    while at < len(room):
        got = file.readinto(room[at:])
        if not got:
            raise OSError(f"{path} has become shorter since it was written")
        at += got


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists and dictionaries with `function` applied to what is of a kind; objects of
    other classes are the same ones."""
    if isinstance(value, kind):
        return function(value)
    if is_cache(value):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, kind, function) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, kind, function) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, kind, function) for key, item in value.items()}
    return value


class Kept:
    """The batches of a loader, kept as they came; iterated any number of times they are the same. `current`: the number
    of the one that was taken last."""

    def __init__(self, store: Boundaries, count: int) -> None:
        self._store, self._count = store, count
        self.current = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for number in range(self._count):
            self.current = number
            yield self._store.get(("batch", number))


def kept_batches(store: Boundaries, loader: Iterable[Any]) -> Kept:
    """Iterates over a loader once, and keeps what it yields. Raises InputError where that is nothing."""
    count = 0
    for batch in loader:
        store.put(("batch", count), batch)
        count += 1
    if not count:
        raise InputError("the loader yields no batch")
    return Kept(store, count)
