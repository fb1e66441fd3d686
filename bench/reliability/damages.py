"""Ways to damage a file: bytes in, bytes out, by a random generator. `Damage.of` draws one that suits the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.reliability.signing import put_together, taken_apart

Draw = np.random.Generator
Way = Callable[[bytes, bytes, Draw], bytes]  # the file, another valid one of its kind, the draw

_RAW = "\x00raw:"  # begins a text that is written without quotes
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "BOOL": 1}
_EXTREMES: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1e308, 3.0000000001),
    *(f"{_RAW}1e999", f"{_RAW}-1e999", f"{_RAW}NaN", f"{_RAW}Infinity", f"{_RAW}1E400", f"{_RAW}01", f"{_RAW}1e3"),
    *(None, True, False, "", "0", "1e999", "\ud800", "x" * 10_000, [], {}, [[]], {"": None}, [0, 1], [None]),
    *(f"{_RAW}{'[' * 3000}{']' * 3000}", f"{_RAW}{'9' * 5000}"),
)


def bits(data: bytes, other: bytes, draw: Draw) -> bytes:
    """One bit, or a few."""
    found = bytearray(data)
    for place in draw.integers(len(data), size=1 if draw.random() < 0.7 else int(draw.integers(2, 9))):
        found[place] ^= 1 << int(draw.integers(8))
    return bytes(found)


def truncation(data: bytes, other: bytes, draw: Draw) -> bytes:
    return data[: int(draw.integers(len(data)))]


def _range(data: bytes, draw: Draw) -> tuple[int, int]:
    """Where, and how far: mostly short, and often where files are cut into pages."""
    start = int(draw.integers(len(data)))
    length = int(2 ** draw.uniform(0, 13))
    if draw.random() < 0.3:
        start, length = start // 512 * 512, 512 * int(draw.integers(1, 5))
    return start, min(start + length, len(data))


def zeros(data: bytes, other: bytes, draw: Draw) -> bytes:
    start, stop = _range(data, draw)
    return data[:start] + bytes(stop - start) + data[stop:]


def noise(data: bytes, other: bytes, draw: Draw) -> bytes:
    start, stop = _range(data, draw)
    return data[:start] + draw.bytes(stop - start) + data[stop:]


def lost(data: bytes, other: bytes, draw: Draw) -> bytes:
    start, stop = _range(data, draw)
    return data[:start] + data[stop:]


def repeated(data: bytes, other: bytes, draw: Draw) -> bytes:
    start, stop = _range(data, draw)
    return data[:stop] + data[start:]


def moved(data: bytes, other: bytes, draw: Draw) -> bytes:
    """Two ranges of one length change places."""
    start, stop = _range(data, draw)
    to = int(draw.integers(max(1, len(data) - (stop - start))))
    if to < stop and start < to + stop - start:
        return noise(data, other, draw)
    (a, b), n = sorted((start, to)), stop - start
    return data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]


def spliced(data: bytes, other: bytes, draw: Draw) -> bytes:
    """The head of one valid file and the tail of another, at one place; or a range of the other within it."""
    place = int(draw.integers(1, min(len(data), len(other))))
    if draw.random() < 0.5:
        return data[:place] + other[place:]
    stop = min(place + int(2 ** draw.uniform(3, 13)), len(data), len(other))
    return data[:place] + other[place:stop] + data[stop:]


def appended(data: bytes, other: bytes, draw: Draw) -> bytes:
    return data + (bytes(int(draw.integers(1, 600))) if draw.random() < 0.5 else draw.bytes(int(draw.integers(1, 600))))


BYTES: tuple[Way, ...] = (
    *(bits, bits, bits, truncation, zeros, zeros, noise, lost, repeated, moved, spliced, spliced, appended),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from _places(entry, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _another(value: Any, draw: Draw) -> Any:
    """A value near this one, of another type, or an extreme."""
    choice = draw.random()
    if isinstance(value, bool) and choice < 0.5:
        return not value
    if isinstance(value, int) and choice < 0.5:
        return value + int(draw.choice([-1, 1, 2, 10, -value]))
    if isinstance(value, float) and choice < 0.5:
        return float(draw.choice([-value, value * (1 + 2**-52), value * 2, value + 1, np.nextafter(value, np.inf)]))
    if isinstance(value, str) and value and choice < 0.5:
        place = int(draw.integers(len(value)))
        return value[:place] + chr(int(draw.integers(32, 127))) + value[place + 1 :]
    if choice < 0.6:
        return [value]
    if choice < 0.65:
        return str(value)
    return copy.deepcopy(_EXTREMES[int(draw.integers(len(_EXTREMES)))])


def edited(content: Any, other: Any, draw: Draw) -> Any:
    """One entry of decoded JSON changed, lost, doubled, moved, or taken from another file."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return _another(content, draw)
    path = places[int(draw.integers(len(places)))]
    if draw.random() < 0.4:  # near the top more often than there is of it
        path = path[: int(draw.integers(1, len(path) + 1))]
    parent, key, how = _at(content, path[:-1]), path[-1], draw.random()
    if how < 0.45:
        parent[key] = _another(parent[key], draw)
    elif how < 0.55:
        del parent[key]
    elif how < 0.7:
        siblings = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        swap = siblings[int(draw.integers(len(siblings)))]
        parent[key], parent[swap] = parent[swap], parent[key]
    elif how < 0.8 and isinstance(parent, list):
        parent.insert(int(draw.integers(len(parent) + 1)), copy.deepcopy(parent[key]))
    elif how < 0.9:
        there = places[int(draw.integers(len(places)))]
        parent[key] = copy.deepcopy(_at(content, there))
    else:
        try:
            parent[key] = copy.deepcopy(_at(other, path))
        except (KeyError, IndexError, TypeError):
            parent[key] = _another(parent[key], draw)
    return content


def _written(content: Any, draw: Draw) -> bytes:
    """As text; entries whose text is meant raw lose their quotes, and sometimes a key comes twice."""
    text = json.dumps(content)
    parts = text.split(json.dumps(_RAW)[:-1])
    for i, part in enumerate(parts[1:], 1):
        raw, _, rest = part.partition('"')
        parts[i] = raw + rest
    text = "".join(parts)
    if isinstance(content, dict) and content and draw.random() < 0.1:
        key = list(content)[int(draw.integers(len(content)))]
        again = f"{json.dumps(key)}: {json.dumps(_another(content[key], draw)).replace(json.dumps(_RAW)[1:-1], '')}"
        text = f"{{{again}, {text[1:]}" if draw.random() < 0.5 else f"{text[:-1]}, {again}}}"
    return text.encode("utf-8", "surrogatepass")


def entries(data: bytes, other: bytes, draw: Draw) -> bytes:
    """A JSON file with entries edited."""
    content, foreign = json.loads(data), json.loads(other)
    for _ in range(1 if draw.random() < 0.7 else int(draw.integers(2, 5))):
        content = edited(content, foreign, draw)
    return _written(content, draw)


def _put_together(header: bytes, body: bytes, draw: Draw) -> bytes:
    return put_together(header + (b" " * (-len(header) % 8) if draw.random() < 0.8 else b""), body)


def _tensors(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _pair(header: dict[str, Any], draw: Draw) -> tuple[str, str]:
    """Two tensors, of equal shape and type where there are such."""
    names = _tensors(header)
    like = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if (header[a]["shape"], header[a]["dtype"]) == (header[b]["shape"], header[b]["dtype"])
    ]
    if like and draw.random() < 0.9:
        return like[int(draw.integers(len(like)))]
    one, two = draw.integers(len(names), size=2)
    return names[one], names[two]


def tensors(data: bytes, other: bytes, draw: Draw) -> bytes:
    """A safetensors file whose tensors are swapped, zeroed, relabelled, renamed, turned, or taken from another."""
    header, body = taken_apart(data)
    names, how = _tensors(header), draw.random()
    name = names[int(draw.integers(len(names)))]
    entry = header[name]
    if how < 0.25:
        one, two = _pair(header, draw)
        header[one]["data_offsets"], header[two]["data_offsets"] = (
            header[two]["data_offsets"],
            header[one]["data_offsets"],
        )
    elif how < 0.35:
        one, two = _pair(header, draw)
        header[one], header[two] = header[two], header[one]
    elif how < 0.5:
        size = _SIZES.get(entry["dtype"], 4)
        like = [label for label, bytes_ in _SIZES.items() if bytes_ == size and label != entry["dtype"]]
        labels = like if draw.random() < 0.9 else list(_SIZES)
        entry["dtype"] = labels[int(draw.integers(len(labels)))]
    elif how < 0.6:
        entry["shape"] = [entry["shape"][i] for i in draw.permutation(len(entry["shape"]))]
    elif how < 0.7:
        start, stop = entry["data_offsets"]
        body = body[:start] + bytes(stop - start) + body[stop:]
    elif how < 0.75:
        del header[name]
    elif how < 0.8:
        header[f"{name}x"] = header.pop(name)
    elif how < 0.9:
        foreign, values = taken_apart(other)
        if name in foreign and foreign[name]["shape"] == entry["shape"]:
            (start, stop), (a, b) = entry["data_offsets"], foreign[name]["data_offsets"]
            body = body[:start] + values[a:b] + body[stop:]
        else:
            header["__metadata__"] = foreign["__metadata__"]
    else:
        edited_header = edited({k: v for k, v in header.items() if k != "__metadata__"}, {}, draw)
        header = {"__metadata__": header["__metadata__"], **edited_header}
    return _put_together(_written(header, draw), body, draw)


def metadata(data: bytes, other: bytes, draw: Draw) -> bytes:
    """A safetensors file with entries of its metadata edited, also of the JSON that is written within it."""
    header, body = taken_apart(data)
    said, foreign = header["__metadata__"], taken_apart(other)[0]["__metadata__"]
    nested = [key for key, text in said.items() if text.startswith("{")]
    if nested and draw.random() < 0.8:
        key = nested[0]
        content = edited(json.loads(said[key]), json.loads(foreign[key]), draw)
        said[key] = _written(content, draw).decode("utf-8", "replace")
    else:
        header["__metadata__"] = edited(said, foreign, draw)
    return _put_together(_written(header, draw), body, draw)


JSON_WAYS: tuple[Way, ...] = (*BYTES, *(entries,) * 20)
TENSOR_WAYS: tuple[Way, ...] = (*BYTES, *(tensors,) * 12, *(metadata,) * 8)


def damaged(name: str, data: bytes, other: bytes, draw: Draw) -> tuple[str, bytes]:
    """The file of that name damaged in a way that is drawn, and the way's name."""
    ways = JSON_WAYS if name.endswith(".json") else TENSOR_WAYS
    way = ways[int(draw.integers(len(ways)))]
    return way.__name__, way(data, other, draw)
