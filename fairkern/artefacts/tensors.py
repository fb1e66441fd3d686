"""Files in the safetensors format, with a sum over all that they say; opened once, and every byte read once.

Such a file has eight bytes that count those of its header (little-endian), the header, and the tensors' bytes one
after the other. The header is a JSON object: for every tensor its dtype, its shape and where its bytes begin and end,
and texts under `__metadata__`. The sum is one of these: SHA-256 over all other texts and every tensor's name, dtype,
shape and the SHA-256 of its bytes.

The package of that name reads and writes the same files. It opens one once for the header and again for the tensors, so
that a file which is replaced in between gives a mixture, and maps it into memory, so that what was summed up can still
change; hence the few lines here.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from io import BufferedReader
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import SUM, compact, encoded, parse, sum_of
from fairkern.artefacts.kinds import BEGIN, looks_like
from fairkern.errors import ArtefactError, InputError

_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PART = 1 << 22  # bytes that are read and summed up while they are in the cache
_AHEAD = 1 << 25  # bytes that the disk is asked for while others are worked on
_MOST_DIMS = 64  # NumPy's limit
_MOST_BYTES = 1 << 62


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def order_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """The order in which `write_tensors` takes tensors: the largest elements first, so that each lies at a multiple of
    its element's size."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


class Later(NamedTuple):
    """A tensor that is made when it is written, and gone then; `like` is one on the meta device."""

    like: Tensor
    make: Callable[[], Tensor]


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor | Later], metadata: Mapping[str, str]
) -> None:
    """Writes dense tensors, of any device, and texts; the sum is added to the texts.

    Tensors are summed up while they are written, one after the other, the largest elements first, so that each lies at
    a multiple of its element's size. The same tensors and texts give the same bytes.

    Raises:
        InputError: a dtype that the format does not have.
        OSError: the file cannot be written, the disk is full. What was written by then stays.
    """
    likes = {name: t.like if isinstance(t, Later) else t for name, t in tensors.items()}
    order = order_of(likes)
    entries, end = {}, 0
    for name in order:
        entries[name] = entry_of(name, likes[name].dtype, likes[name].shape, end)
        end = entries[name].stop
    blank = header_of(entries, {**metadata, SUM: "0" * hashlib.sha256().digest_size * 2})
    sums = {}
    with open(path, "wb") as file:
        file.write(len(blank).to_bytes(8, "little") + blank)
        for name in order:
            given = tensors[name]
            data = bytes_of(given.make() if isinstance(given, Later) else given)
            sums[name] = hashlib.sha256(data).hexdigest()
            file.write(data)
        file.seek(8)
        file.write(header_of(entries, {**metadata, SUM: _sum(entries, metadata, sums)}))


def entry_of(name: str, dtype: torch.dtype, shape: Sequence[int], start: int) -> Entry:
    """What a header says of a tensor whose bytes begin at `start`. Raises InputError for what the format has not."""
    if dtype not in _NAMES or name == _METADATA:
        raise InputError(f"{name} is a tensor of {dtype}, which a safetensors file cannot hold")
    return Entry(_NAMES[dtype], tuple(shape), start, start + math.prod(shape) * dtype.itemsize)


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """A header without its count of bytes, filled up to a multiple of eight."""
    said = {
        name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": [e.start, e.stop]} for name, e in entries.items()
    }
    text = encoded(compact({_METADATA: {**metadata}, **said}), "a tensor's name or the metadata")
    return text + b" " * (-len(text) % 8)


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a dense tensor of any device, in the order of its dimensions; no copy where they lie so."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # a lone element may have any stride
    return flat.view(torch.uint8).numpy().data


def _sum(entries: Mapping[str, Entry], metadata: Mapping[str, str], sums: Mapping[str, str]) -> str:
    return sum_of(
        {
            "metadata": {key: metadata[key] for key in sorted(metadata) if key != SUM},
            "tensors": {name: [entries[name].dtype, entries[name].shape, sums[name]] for name in sorted(entries)},
        }
    )


@contextmanager
def open_tensors(path: str | os.PathLike[str], wanted: str = "expected tensors") -> Iterator[TensorFile]:
    """A file that `write_tensors` or another writer of the format wrote, with its header read and checked.
    `wanted` ends the error where it is JSON.

    Raises:
        ArtefactError: truncated, of another format, or a header that contradicts itself or the file's length.
        OSError: there is no such file, or it cannot be read.
    """
    if os.path.isdir(path):
        raise ArtefactError(f"{path} is a folder; expected a safetensors file")
    with open(path, "rb") as file:
        yield TensorFile(file, path, wanted)


class TensorFile:
    """An open file: `metadata` are its texts, the sum among them; its tensors are read on demand."""

    def __init__(self, file: BufferedReader, path: str | os.PathLike[str], wanted: str) -> None:
        self._file, self._path = file, path
        self._asked = 0  # how far the system has been asked to read ahead
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        self._begin = 8 + length
        if first.lstrip().startswith(b"{") and self._begin > size:
            what = looks_like(first + file.read(BEGIN))
            raise ArtefactError(f"{path} is {what}, and no safetensors file; {wanted}")
        if self._begin > size:  # so no memory is asked for that the file could not fill
            self._fail(f"its header ends at {self._begin}, the file at {size}")
        try:
            content = parse(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            self._fail(str(error))
        header = Fields(content, path).entries()
        texts = header.pop(_METADATA, None)
        self.metadata = {} if texts is None else {key: entry.text() for key, entry in texts.entries().items()}
        self._entries = {name: _entry(entry) for name, entry in header.items()}
        end = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if entry.start != end:
                header[name].fail(f"its bytes begin at {entry.start}, where those before it end at {end}")
            end = entry.stop
        if self._begin + end != size:
            self._fail(f"its tensors end at {self._begin + end}, the file at {size}")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by their names, as the header has them."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, keep: Callable[[str, Tensor], Tensor] | None = None) -> tuple[dict[str, Tensor], str]:
        """All tensors, on the CPU in memory of their own, and the sum of what was read, to be compared.

        Every byte is read and summed up once, a part at a time, in as many threads as torch uses; nothing is copied.
        `keep(name, tensor)` gives what is kept of each: they are read one after the other then.
        """
        if keep is not None:
            kept, said = {}, {}
            for name, entry in self._entries.items():
                tensor, said[name] = self._tensor(name, entry)
                kept[name] = keep(name, tensor)
            return kept, _sum(self._entries, self.metadata, said)
        threads = min(torch.get_num_threads(), len(self._entries))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(self._tensor, self._entries, self._entries.values()))
        else:
            found = list(map(self._tensor, self._entries, self._entries.values()))
        tensors = {name: tensor for name, (tensor, _) in zip(self._entries, found, strict=True)}
        sums = {name: said for name, (_, said) in zip(self._entries, found, strict=True)}
        return tensors, _sum(self._entries, self.metadata, sums)

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtypes of all tensors by their names, as the header has them."""
        return {name: _DTYPES[entry.dtype] for name, entry in self._entries.items()}

    @property
    def order(self) -> list[str]:
        """Names of all tensors in the order in which their bytes lie in the file."""
        return sorted(self._entries, key=lambda name: self._entries[name][2:])

    @property
    def head(self) -> bytes:
        """What stands before the tensors: the count of the header's bytes, and the header."""
        return os.pread(self._file.fileno(), self._begin, 0)

    def tensor(self, name: str) -> tuple[Tensor, str]:
        """One tensor, on the CPU in memory of its own, and the sum of its bytes."""
        return self._tensor(name, self._entries[name])

    def rows(self, name: str, start: int = 0, stop: int | None = None, into: Tensor | None = None) -> Tensor:
        """Positions `start` to `stop` of a tensor's first dimension (default: all), in own memory, not summed up.

        `into`: a contiguous CPU tensor of that dtype and shape, which is filled and returned. Several threads may read.
        Raises ArtefactError where the file has become shorter. Cost: one read of these rows.
        """
        entry = self._entries[name]
        dtype, rest = _DTYPES[entry.dtype], entry.shape[1:]
        if entry.shape:
            stop = entry.shape[0] if stop is None else stop
            if not 0 <= start <= stop <= entry.shape[0]:
                raise InputError(f"{name} has {entry.shape[0]} rows; asked for {start} to {stop}")
        shape = (stop - start, *rest) if stop is not None else ()
        made = torch.empty(shape, dtype=dtype, device="cpu") if into is None else into
        if made.shape != shape or made.dtype != dtype or made.device.type != "cpu" or not made.is_contiguous():
            raise InputError(f"{name}: {dtype} of the shape {shape} has no place in {made.dtype} {tuple(made.shape)}")
        flat = made.detach().reshape(-1).view(torch.uint8)
        self._fill(flat.numpy().data, name, entry.start + start * math.prod(rest) * dtype.itemsize)
        self._check_truth(name, flat)
        return made

    def ask_ahead(self, name: str, stop: int) -> None:
        """Tells the system that a reader who has come to row `stop` of a tensor reads on from there, so that the disk
        brings the next bytes meanwhile. No effect where they are in memory, or the system has no such call."""
        entry = self._entries[name]
        rows = entry.shape[0] if entry.shape else 1
        at = self._begin + entry.start + (entry.stop - entry.start) * stop // max(rows, 1)
        if hasattr(os, "posix_fadvise") and at + _AHEAD // 2 > self._asked:
            begin, self._asked = max(at, self._asked), at + _AHEAD
            os.posix_fadvise(self._file.fileno(), begin, self._asked - begin, os.POSIX_FADV_WILLNEED)

    def _fill(self, data: memoryview, name: str, at: int) -> None:
        """Reads as many bytes as there is room for; the file has no position, so that threads may read together."""
        while len(data):
            read = os.preadv(self._file.fileno(), [data], self._begin + at)
            if not read:
                self._fail(f"it ends within the tensor {name!r}")
            data, at = data[read:], at + read

    def _check_truth(self, name: str, flat: Tensor) -> None:
        if self._entries[name].dtype == "BOOL" and flat.numel() and int(flat.max()) > 1:
            self._fail(f"the tensor {name!r} holds truth values that are neither 0 nor 1")

    def sum_of(self, sums: Mapping[str, str]) -> str:
        """The sum of the file, given that of every tensor's bytes."""
        return _sum(self._entries, self.metadata, sums)

    def _tensor(self, name: str, entry: Entry) -> tuple[Tensor, str]:
        """A tensor and the sum of its bytes."""
        flat = torch.empty(entry.stop - entry.start, dtype=torch.uint8, device="cpu")
        state, data = hashlib.sha256(), flat.numpy().data
        for at in range(0, len(data), _PART):
            part = data[at : at + _PART]
            self._fill(part, name, entry.start + at)
            state.update(part)
        self._check_truth(name, flat)
        return flat.view(_DTYPES[entry.dtype]).reshape(entry.shape), state.hexdigest()

    def _fail(self, what: str) -> NoReturn:
        raise ArtefactError(f"{self._path} is truncated or not a safetensors file ({what}); write or fetch it again")


def _entry(entry: Fields) -> Entry:
    """What a header says of one tensor, its numbers held against each other."""
    dtype, shape = entry["dtype"].text(), entry["shape"].wholes()
    start, stop = (place.whole() for place in entry["data_offsets"].items(2))
    if dtype not in _DTYPES:
        entry.fail(f"the dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    size = _DTYPES[dtype].itemsize
    if len(shape) > _MOST_DIMS or math.prod(max(n, 1) for n in shape) * size > _MOST_BYTES:
        entry.fail("a shape that no tensor has")
    if stop - start != math.prod(shape) * size:
        entry.fail(f"{stop - start} bytes for {dtype} of the shape {shape}")
    return Entry(dtype, shape, start, stop)
