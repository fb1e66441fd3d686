"""Files and folders that are named on the command line: those to read, and places to write."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import fairkern as fk
from fairkern.cli.given import module_file
from fairkern.cli.words import meant

_READ = (
    *("subject", "rest", "model", "loader", "loss", "inputs", "more", "class_of", "samples_of", "removal", "protect"),
    *("methods", "evaluate", "scores", "plan", "latency", "hf", "data"),
)  # arguments that name what is read


def existing(path: Path, within: str) -> Path:
    """The same path, once there is a file; `within` is its name in a folder of `fairkern prune`."""
    if path.is_dir():
        there = f": {path / within}" if (path / within).is_file() else ""
        raise fk.InputError(f"{path} is a folder; name the file{there}")
    if not path.is_file():
        raise fk.InputError(f"there is no file {path}{_near(path)}")
    return path


def there(path: Path, what: str = "file or folder") -> Path:
    """The same path, once there is something."""
    if not path.exists():
        raise fk.InputError(f"there is no {what} {path}{_near(path)}")
    return path


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    close = meant(path.name, sorted(other.name for other in path.parent.iterdir()))
    return close.replace("did you mean ", f"did you mean {path.parent}{os.sep}") if path.parent != Path() else close


def read_by(arguments: argparse.Namespace) -> list[Path]:
    """Files that a command reads: those that it names, those in a folder, and modules of what it names in Python."""
    found: list[Path] = []
    for name in _READ:
        given = getattr(arguments, name, None) or ()
        for one in [given] if isinstance(given, (str, Path)) else given if isinstance(given, Iterable) else ():
            path = Path(one)
            if path.is_dir():
                found += [inner for inner in path.iterdir() if inner.is_file()]
            elif path.is_file():
                found.append(path)
            elif ":" in str(one) and (module := module_file(str(one))) is not None:
                found.append(module)
    return found


def writable(path: Path, *, folder: bool = False, read: Sequence[Path | None] = ()) -> Path:
    """The same path, once a file or folder can be written there: better known before an hour's work. Makes nothing.

    `read`: what the command reads, and would be written over.
    """
    if path.exists() and path.is_dir() != folder:
        is_, expected = ("file", "folder") if folder else ("folder", "file")
        raise fk.InputError(f"cannot write {path}: it is a {is_}, and a {expected} is expected")
    if path.exists() and any(other is not None and other.exists() and path.samefile(other) for other in read):
        raise fk.InputError(f"cannot write {path}: it is what is read; name another")
    if path.exists() and not folder and not path.is_file():
        raise fk.InputError(f"cannot write {path}: it is a device or a pipe, and a file is expected")
    above = next(place for place in (path if folder else path.parent, *path.parents) if os.path.lexists(place))
    if not above.is_dir():
        raise fk.InputError(f"cannot write {path}: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise fk.InputError(f"cannot write {path}: no permission in {above}")
    try:  # permission says nothing of /proc, nor of what is mounted to be read
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise fk.InputError(f"cannot write {path}: no file can be made in {above} ({_why(error)})") from None
    return path


def apart(*files: Path | None, folder: Path | None = None) -> None:
    """Raises `InputError` where two places that a command writes to are one, so that the later would replace the first.

    `folder`: what the command fills with files of its own, beside which only a page may lie there.
    """
    places = [path.resolve() for path in (*files, folder) if path is not None]
    twice = next((path for path in places if places.count(path) > 1), None)
    if twice is not None:
        raise fk.InputError(f"cannot write {twice.name} twice: name two places")
    for path in files:
        if path is None or folder is None or folder.resolve() not in path.resolve().parents:
            continue
        if path.suffix not in (".html", ".htm"):
            raise fk.InputError(f"cannot write {path}: {folder} has files of its own; name a page in it .html")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Around writing a file: the folder above is made, and what the system refuses is an error of one line."""
    with _said_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path


@contextlib.contextmanager
def written_folder(out: Path) -> Iterator[Path]:
    """Where to write a folder's files, all of which come to be in `out` at the end: a new one, or beside others there.

    Until then `out` is as it was.
    """
    with _said_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fairkern-", dir=out if out.is_dir() else out.parent) as beside:
            place = Path(beside) / "whole"
            yield place
            with _signals_wait():
                if out.is_dir():
                    for file in sorted(place.iterdir()):
                        os.replace(file, out / file.name)
                else:
                    os.rename(place, out)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fk.InputError(f"cannot write {path}: {_why(error)}") from error


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """What comes meanwhile strikes afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda n, _: came.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
