"""JSON files with a header and a sum, and what every header must say."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairkern.artefacts.kinds import BEGIN, in_words, looks_like
from fairkern.artefacts.kinds import expected as wanted
from fairkern.artefacts.writing import replacing
from fairkern.errors import ArtefactError, InputError
from fairkern.version import package_version

SCHEMA = 4
"""Version of the file layout. Readers take no newer one, and older ones down to `_OLDEST`, else 1.

2: groups with several sets, experts (`sets`, `least`, `multiple`, `routes`), size sites, replacements, configuration; 1
has none of them. 3: lists of modules that are experts (`lists`, extents of one unit). 4: a sum of the
whole file.
"""

SUM = "sha256"
"""The entry of a header with the sum of everything else in the file."""

_OLDEST = {"scores": 2}
_SUMMED = 4  # files of older schemas have no sum

_HEADER = ("format", "schema", "fairkern", SUM)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURE = 2**63  # whole numbers below it are none that JSON could not hold
_DEEPEST = 64  # levels of lists and mappings within an entry that users fill


def write_json(path: str | os.PathLike[str], kind: str, payload: Mapping[str, Any]) -> None:
    """Writes `payload` atomically as a JSON object, with the header of `json_file`.

    Raises:
        InputError: a value that JSON cannot hold (NaN and Inf among them); names its place.
        OSError: the folder cannot be made or written, the disk is full. Nothing half-written stays.
    """
    data = json_file(kind, payload)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def json_file(kind: str, payload: Mapping[str, Any]) -> bytes:
    """A file of `payload`: a JSON object with the header `format` ("fairkern.<kind>"), `schema`, `fairkern`, `sha256`.

    One line per entry at the top level and one level below, compact further down. NumPy scalars and arrays,
    tuples and mappings are written as plain JSON. The sum is over all that the file says, not over how it is laid out.

    Raises InputError (a value that JSON cannot hold).
    """
    clash = [key for key in _HEADER if key in payload]
    if clash:
        raise InputError(f"{kind}: the entry {clash[0]!r} belongs to the file's header; give it another name")
    header = {"format": f"fairkern.{kind}", "schema": SCHEMA, "fairkern": package_version()}
    content = plain(payload, kind)
    return _lines({**header, SUM: sum_of({**header, **content}), **content}).encode("utf-8")


def read_json(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The entries of a file that `write_json` wrote, without the header.

    The file is opened once. One of an older schema, without a sum, is read with a warning.

    Raises:
        ArtefactError: truncated, not JSON, of another format or a newer schema, edited or damaged; says what was found.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/report.json", "report", {"accuracy": (0.99, np.float64(0.98))})
        ...     read_json(f"{folder}/report.json", "report")
        {'accuracy': [0.99, 0.98]}
    """
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError:
        raise ArtefactError(
            f"{path} is a folder; expected the file of a fairkern {kind}, such as {kind}.json"
        ) from None
    return entries_of(data, path, kind)


def entries_of(data: bytes, path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The entries of what `json_file` made, found at `path` (in words, where it is no file). Raises ArtefactError."""
    try:
        content = parse(data.decode("utf-8"))
        found = sum_of({key: value for key, value in content.items() if key != SUM}) if type(content) is dict else ""
    except UnicodeDecodeError:
        what = looks_like(data[:BEGIN]) or "not a text file"
        raise ArtefactError(f"{path} is {what}; {wanted(kind)}") from None
    except (ValueError, RecursionError) as error:
        if data[8:9] == b"{" and (seen := looks_like(data[:BEGIN])):  # tensors behind the length of their header
            raise ArtefactError(f"{path} is {seen}; {wanted(kind)}") from None
        what = "is empty" if not data.strip() else f"is truncated or not JSON ({error})"
        raise ArtefactError(f"{path} {what}; write the {kind} again") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a JSON {type(content).__name__}; expected the object of a fairkern {kind}")
    check_header(content, path, kind)
    check_sum(content, found, path, kind)
    return {key: value for key, value in content.items() if key not in _HEADER}


def check_header(header: Mapping[str, Any], path: str | os.PathLike[str], kind: str) -> None:
    """Raises ArtefactError unless the header names this kind and a schema that can be read."""
    expected, found = f"fairkern.{kind}", header.get("format")
    if found != expected:
        own = str(found).removeprefix("fairkern.")
        if own != str(found) and own.isidentifier() and len(own) <= 40:
            raise ArtefactError(f"{path} is {in_words(own)}; {wanted(kind)}")
        what = f"has the format {found!r}" if found is not None else "names no format"
        raise ArtefactError(f"{path} {what}; {wanted(kind)}: fairkern did not write it")
    schema = header.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise ArtefactError(f"{path} has the schema {schema!r}; expected a whole number, 1 to {SCHEMA}: damaged file")
    if schema < _OLDEST.get(kind, 1):
        raise ArtefactError(
            f"{path} has schema {schema}, written by fairkern {header.get('fairkern')}; this fairkern reads {kind} of "
            f"schema {_OLDEST[kind]} and later: write the {kind} again"
        )
    if schema > SCHEMA:
        raise ArtefactError(
            f"{path} has schema {schema}, written by fairkern {header.get('fairkern')}; this is fairkern "
            f"{package_version()}, which reads schemas up to {SCHEMA}: upgrade fairkern"
        )


def check_sum(header: Mapping[str, Any], found: str, path: str | os.PathLike[str], kind: str) -> None:
    """Raises ArtefactError unless the header names the sum that was found; warns if it is too old to name one."""
    if SUM not in header and header["schema"] < _SUMMED:
        warnings.warn(
            f"{path} was written before files had a sum (schema {header['schema']}): whether its content is what was "
            f"written cannot be told; write the {kind} again to have that checked from now on",
            stacklevel=2,
        )
    elif header.get(SUM) != found:
        raise ArtefactError(
            f"{path}: its content does not have the sum that it names: the file was edited or damaged after it was "
            f"written. Write the {kind} again, or take back what it was; a {kind} is changed in Python: load it whole, "
            "dataclasses.replace, save it"
        )


def sum_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON content, in hexadecimal: over keys and values in their order, however they are laid out.

    ValueError, RecursionError: what `plain` would refuse.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def encoded(text: str, what: str) -> bytes:
    """UTF-8; InputError where a name holds half of a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} holds text that no file can: {error}") from None


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as what `json.loads` would give back: dict, list, str, int, float, bool, None.

    Raises:
        InputError: a key that is not a string, a number that is not finite or beyond every float, any other type,
            lists and mappings within each other without end.
    """
    if isinstance(value, str):
        encoded(value, where)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if not abs(value) <= sys.float_info.max:
            shown = value if isinstance(value, float) else f"a whole number of {value.bit_length()} bits"
            raise InputError(f"{where} is {shown}; JSON holds finite numbers only")
        return float(value) if isinstance(value, float) else value
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist(), where, depth)
    if not isinstance(value, (Mapping, list, tuple)):
        raise InputError(f"{where} is a {type(value).__name__}; expected numbers, text, lists and mappings")
    if depth == _DEEPEST:
        raise InputError(f"{where} lies deeper than {_DEEPEST} lists and mappings within each other")
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) == {int} and -_SURE < min(value) <= max(value) < _SURE:  # most of a plan is such
            return list(value)
        return [plain(entry, f"{where}[{i}]", depth + 1) for i, entry in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where} has the key {key!r}; JSON keys are strings")
        encoded(key, where)
    return {key: plain(entry, f"{where}.{key}", depth + 1) for key, entry in value.items()}


def parse(text: str) -> Any:
    """`json.loads` of what JSON is: no NaN, no infinity (1e999 is one), no key twice, no half of a surrogate pair.

    ValueError or RecursionError if it is not.
    """
    value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_entries)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a pair of them is a character
    return value


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is beyond every number that a file holds")
    return value


def _entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} comes twice")
    return entries


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def _lines(content: Mapping[str, Any]) -> str:
    entries = []
    for key, value in content.items():
        text = compact(value)
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"    {compact(k)}: {compact(v)}" for k, v in value.items())
            text = f"{{\n{inner}\n  }}"
        elif isinstance(value, list) and value:
            inner = ",\n".join(f"    {compact(v)}" for v in value)
            text = f"[\n{inner}\n  ]"
        entries.append(f"  {compact(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"
