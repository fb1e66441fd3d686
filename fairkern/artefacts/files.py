"""Atomic writes, JSON files with a header, and what every header must say."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fairkern.errors import ArtefactError, InputError
from fairkern.interrupts import unbroken

SCHEMA = 3
"""Version of the file layout. Readers take no newer one, and older ones down to `_OLDEST`, else 1.

2: groups with several sets, experts (`sets`, `least`, `multiple`, `routes`), size sites, replacements, configuration; 1
has none of them. 3: lists of modules that are experts (`lists`, extents of one unit).
"""

_OLDEST = {"scores": 2}

_HEADER = ("format", "schema", "fairkern")


def package_version() -> str:
    """Version of the installed package; "unknown" when it runs from a folder that was never installed."""
    try:
        return importlib.metadata.version("fairkern")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
@unbroken
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` when the block ends well.

    The file is fsynced, renamed over `path`, and the folder fsynced. If the block raises (also Ctrl-C) the
    temporary file is removed and `path` stays as it was. A link is followed, not replaced.

    Raises:
        OSError: the folder does not exist or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("whole or not at all")
        ...     os.listdir(folder)
        ['notes.txt']
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(target.parent))
    temporary = target.parent / f".fairkern-{secrets.token_hex(8)}.tmp"
    try:
        temporary.touch(exist_ok=False)  # fails early, and with the caller's permissions
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # a writer may have made the file anew, for its owner alone
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last, where the system can."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(path: str | os.PathLike[str], kind: str, payload: Mapping[str, Any]) -> None:
    """Writes `payload` as a JSON object with a header: `format` ("fairkern.<kind>"), `schema`, `fairkern`.

    One line per entry at the top level and one level below, compact further down. NumPy scalars and arrays,
    tuples and mappings are written as plain JSON.

    Raises:
        InputError: a value that JSON cannot hold (NaN and Inf among them); names its place.
        OSError: the folder does not exist or cannot be written. Nothing half-written stays.
    """
    clash = [key for key in _HEADER if key in payload]
    if clash:
        raise InputError(f"{kind}: the entry {clash[0]!r} belongs to the file's header; give it another name")
    content = plain({"format": f"fairkern.{kind}", "schema": SCHEMA, "fairkern": package_version(), **payload}, kind)
    text = _lines(content)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The entries of a file that `write_json` wrote, without the header.

    Raises:
        ArtefactError: truncated, not JSON, of another format or a newer schema; says what was found.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/report.json", "report", {"accuracy": (0.99, np.float64(0.98))})
        ...     read_json(f"{folder}/report.json", "report")
        {'accuracy': [0.99, 0.98]}
    """
    data = Path(path).read_bytes()
    try:
        content = parse(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ArtefactError(f"{path} is not a text file; expected the JSON of a fairkern {kind}") from None
    except (ValueError, RecursionError) as error:
        what = "is empty" if not data.strip() else f"is truncated or not JSON ({error})"
        raise ArtefactError(f"{path} {what}; write the {kind} again") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds a JSON {type(content).__name__}; expected the object of a fairkern {kind}")
    check_header(content, path, kind)
    return {key: value for key, value in content.items() if key not in _HEADER}


def check_header(header: Mapping[str, Any], path: str | os.PathLike[str], kind: str) -> None:
    """Raises ArtefactError unless the header names this kind and a schema that can be read."""
    expected, found = f"fairkern.{kind}", header.get("format")
    if found != expected:
        what = f"has the format {found!r}" if found is not None else "names no format"
        hint = (
            "load it with the reader of that kind"
            if str(found).startswith("fairkern.")
            else "fairkern did not write it"
        )
        raise ArtefactError(f"{path} {what}; expected {expected!r}: {hint}")
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


def plain(value: Any, where: str) -> Any:
    """`value` as what `json.loads` would give back: dict, list, str, int, float, bool, None.

    Raises:
        InputError: a key that is not a string, a number that is not finite, any other type.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}; JSON holds finite numbers only")
        return float(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist(), where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}; JSON keys are strings")
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}; expected numbers, text, lists and mappings")


def parse(text: str) -> Any:
    """`json.loads` without NaN and Infinity, which are not JSON. ValueError or RecursionError if it is not JSON."""

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    return json.loads(text, parse_constant=reject)


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
