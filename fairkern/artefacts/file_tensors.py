"""What a plan says of a checkpoint's files, as JSON content."""

from __future__ import annotations

from typing import Any

from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import plain
from fairkern.types import FilePart, Files, FileTensor


def files_content(files: Files) -> dict[str, Any]:
    """As plain JSON; a part is its parameter, its places, its length and in how many turns."""
    return {
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                **({"along": tensor.along} if tensor.along else {}),
                "parts": [
                    [p.parameter, [list(at) if isinstance(at, tuple) else at for at in p.index], p.length, p.turns]
                    for p in tensor.parts
                ],
            }
            for tensor in files.tensors
        ],
        "absent": list(files.absent),
        "ignored": list(files.ignored),
        "config": {name: plain(list(change), name) for name, change in files.config.items()},
    }


def read_files(content: Fields, shapes: dict[str, tuple[int, ...]]) -> Files | None:
    """What `files_content` wrote, held against the shapes of the parameters; None where a plan says nothing of it."""
    entry = content.get("files", None)
    if entry.value is None:
        return None
    tensors = tuple(_tensor(item, shapes) for item in entry["tensors"].items())
    if len({tensor.name for tensor in tensors}) < len(tensors):
        entry["tensors"].fail("a name comes twice")
    absent = entry["absent"].names()
    for name in absent:
        if name not in shapes:
            entry["absent"].fail(f"{name!r} is not among the shapes")
    config = {name: [item.value for item in change.items(2)] for name, change in entry["config"].entries().items()}
    return Files(tensors, absent, entry["ignored"].names(), {name: (was, now) for name, (was, now) in config.items()})


def _tensor(entry: Fields, shapes: dict[str, tuple[int, ...]]) -> FileTensor:
    shape, along = entry["shape"].wholes(), entry.get("along", 0).whole()
    if along >= max(len(shape), 1):
        entry.fail(f"parts along dimension {along} of {len(shape)}")
    parts = tuple(_part(item, shape, along, shapes) for item in entry["parts"].items())
    if shape and sum(part.length for part in parts) != shape[along]:
        entry.fail(f"parts of {sum(part.length for part in parts)} positions, where the shape is {shape}")
    k = 0
    while k < len(parts):
        together = parts[k : k + parts[k].turns]
        if len(together) < parts[k].turns or len({(part.turns, part.length) for part in together}) > 1:
            entry.fail("parts that take turns are of several lengths or numbers")
        k += len(together)
    return FileTensor(entry["name"].text(), shape, parts, along)


def _part(entry: Fields, shape: tuple[int, ...], along: int, shapes: dict[str, tuple[int, ...]]) -> FilePart:
    parameter, places, length, turns = entry.items(4)
    name, count = parameter.text(), length.whole(1)
    if name not in shapes:
        parameter.fail(f"the tensor {name!r} is not among the shapes")
    index: list[int | tuple[int, int, int]] = []
    used: set[int] = set()
    for item, size in zip(places.items(len(shapes[name])), shapes[name], strict=True):
        if isinstance(item.value, list):
            dim, start, step = item.wholes() if len(item.value) == 3 else item.fail("expected three numbers")
            if dim >= len(shape) or dim in used or not step:
                item.fail(f"places along dimension {dim} of a tensor of the shape {shape}, in steps of {step}")
            used.add(dim)
            last = start + step * ((count if dim == along else shape[dim]) - 1)
            index.append((dim, start, step))
        else:
            last = item.whole()
            index.append(last)
        if last >= size:
            item.fail(f"the position {last} of {size}")
    for dim, size in enumerate(shape):
        if dim not in used and (count if dim == along else size) != 1:
            entry.fail(f"dimension {dim} of the shape {shape} is none of {name!r}")
    return FilePart(name, tuple(index), count, turns.whole(1))
