"""Where second moments stay once the order of their layer is known: in memory, in files of a folder, or nowhere."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from fairkern.artefacts.contents import read_content, write_content
from fairkern.capture.moments import Half
from fairkern.errors import ArtefactError, InputError
from fairkern.ops.gram.packed import Packed
from fairkern.types import Moments

_KIND = "moments"


class _File(NamedTuple):
    """A file of moments, and what was written there: another scoring may have written to that place since."""

    path: Path
    sum: str | None  # None: another process has written it


class KeptMoments(Mapping[str, Moments]):
    """`Scores.moments`: by tap name. Held as halves, in memory or in files; each access makes a full matrix anew."""

    def __init__(self, halves: Mapping[str, Half | _File] | None = None) -> None:
        self._halves = dict(halves or {})

    def __getitem__(self, name: str) -> Moments:
        held = self._halves[name]
        return (_read(held, name) if isinstance(held, _File) else held).whole()

    def __contains__(self, name: object) -> bool:
        return name in self._halves  # without making a matrix, or reading a file, to see it

    def __iter__(self) -> Iterator[str]:
        return iter(self._halves)

    def __len__(self) -> int:
        return len(self._halves)

    @classmethod
    def joined(cls, parts: Iterable[Mapping[str, Moments]]) -> KeptMoments:
        """Those of several of these, where they are."""
        return cls({name: half for part in parts if isinstance(part, cls) for name, half in part._halves.items()})

    @property
    def nbytes(self) -> int:
        """What is held in memory."""
        held = [half for half in self._halves.values() if not isinstance(half, _File)]
        return sum(half.square.flat.nbytes + half.total.nbytes for half in held)


class Keeper:
    """Takes the moments of one tap after the other. `where`: True, in memory; False, nowhere; else a folder, in which
    another process has the same files written where this one does not write."""

    def __init__(self, where: bool | str | os.PathLike[str], *, writes: bool = True) -> None:
        self._where, self._writes = where, writes
        self._halves: dict[str, Half | _File] = {}

    def keep(self, name: str, half: Half) -> None:
        if self._where is False or name in self._halves:
            return
        if self._where is True:
            self._halves[name] = half
            return
        path = _path(Path(self._where), name)
        if self._writes:
            _write(path, name, half)
        self._halves[name] = _File(path, _sum(half) if self._writes else None)

    def kept(self, order: Iterable[str]) -> KeptMoments:
        """All of them, in this order."""
        return KeptMoments({name: self._halves[name] for name in order if name in self._halves})


def check_folder(where: bool | str | os.PathLike[str]) -> None:
    """Make the folder that is asked for. Raises InputError where something lies in it already, OSError."""
    if isinstance(where, bool):
        return
    os.makedirs(where, exist_ok=True)
    if any(Path(where).iterdir()):
        raise InputError(f"keep_moments={where!r} is a folder with files in it; give a new or an empty one")


def _path(folder: Path, name: str) -> Path:
    """One place for a tap, in whatever order layers are solved."""
    told_apart = hashlib.sha256(name.encode()).hexdigest()[:8]
    return (folder / f"{re.sub('[^A-Za-z0-9_.-]', '_', name)[-120:]}-{told_apart}.safetensors").resolve()


def _write(path: Path, name: str, half: Half) -> None:
    tensors = {"half": half.square.flat, "total": half.total}
    write_content(path, _KIND, tensors, {"tap": name, "count": half.count, "per_unit": half.per_unit})


def _sum(half: Half) -> str:
    """Tells what one scoring made from what another did."""
    state = hashlib.sha256(str(half.count).encode())
    state.update(half.total.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _read(file: _File, name: str) -> Half:
    """Raises ArtefactError (a file that is gone, or not the one that was written), OSError."""
    try:
        tensors, content = read_content(file.path, _KIND, "score again")
    except FileNotFoundError:
        raise ArtefactError(
            f"{file.path}, to which scoring wrote the moments of {name!r}, is gone; put it back, or score again"
        ) from None
    half, total = tensors.get("half"), tensors.get("total")
    if content["tap"].text() != name or half is None or total is None:
        content.fail(f"other moments than those of {name!r}")
    n = len(total)
    if any(t.dtype != torch.float64 for t in (half, total)) or half.shape != (Packed.length(n),) or total.ndim != 1:
        content.fail(f"moments of {name!r} of another size than they have")
    found = Half(Packed(n, half), total, content["count"].whole(1), content["per_unit"].whole(1))
    if file.sum is not None and _sum(found) != file.sum:
        content.fail(f"moments of {name!r} that another scoring wrote there since")
    return found
