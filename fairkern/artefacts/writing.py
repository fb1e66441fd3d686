"""Files and folders that appear whole or not at all, and what writers that died have left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fairkern.interrupts import unbroken

PARTIAL = ".partial"
"""What the name of a folder ends with while it is written by a run that another may go on with."""

_held: set[Path] = set()  # folders that this process has locked for itself
_TEMPORARY = re.compile(r"\.fairkern-[0-9a-f]{16}\.tmp")


@contextmanager
@unbroken
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` when the block ends well.

    The block writes into the file that is there, and does not put another in its place. The file is then fsynced,
    renamed over `path`, and the folder fsynced. If the block raises (also Ctrl-C) the temporary file is removed and
    `path` stays as it was. Folders above are made where they are missing. Temporary files whose writers died are
    removed after a write that succeeds. A link is followed, not replaced.

    Raises:
        OSError: the folder cannot be made or written, `path` is a folder, a device or a pipe, the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/notes.txt") as temporary:
        ...         _ = temporary.write_text("whole or not at all")
        ...     os.listdir(folder)
        ['notes.txt']
    """
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextmanager
@unbroken
def replacing_all(paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[Path]]:
    """`replacing` for files that belong together: all of them are on the disk before the first is renamed.

    They are renamed one after the other, so they have to say themselves which belong together. Of several writers, one
    renames at a time (where the system has locks), so that the last one's files stay together.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder; expected a file to write to", str(target))
        if os.path.lexists(target) and not target.is_file():
            what = "is a device, a pipe or a link to itself; expected a file to write to"
            raise OSError(errno.EINVAL, what, str(target))
    try:
        with ExitStack() as stack:
            for target in targets:
                stack.enter_context(_there(target.parent))
            temporaries = [stack.enter_context(_temporary(target.parent)) for target in targets]
            yield temporaries
            for temporary in temporaries:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            with _one_writer(targets[0].parent):
                for temporary, target in zip(temporaries, targets, strict=True):
                    os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        where = targets[0] if len(targets) == 1 else targets[0].parent  # what write() and fsync() do not say
        raise OSError(error.errno, f"{error.strerror}; nothing was replaced, while writing", str(where)) from error
    for folder in dict.fromkeys(target.parent for target in targets):
        _finish(folder)


@contextmanager
@unbroken
def _there(folder: Path) -> Iterator[None]:
    """A folder is made where there is none, with those above it; if the block raises, those go that hold nothing."""
    new: list[Path] = []
    try:
        for each in reversed([folder, *folder.parents]):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                new.append(each)
        yield
    except BaseException:
        for each in reversed(new):
            with contextlib.suppress(OSError):  # another writer's files are there by now
                each.rmdir()
        raise


@contextmanager
@unbroken
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a folder's files: the folder itself if it exists, else one beside it that becomes it at the end.

    A folder that exists keeps its identity: permissions, mounts, processes that work in it. A new one appears with all
    that the block wrote, or not at all. Where another writer's has appeared meanwhile, it gets our files.

    Raises:
        OSError: the folder above cannot be made or written, there is a file of that name.
    """
    target = Path(os.path.realpath(folder))
    if target.is_dir():
        yield target
        return
    if target.exists():
        raise NotADirectoryError(errno.ENOTDIR, "is a file; expected a folder to write to", str(folder))
    with _there(target.parent), _temporary(target.parent, folder=True) as place:
        yield place
        try:
            os.rename(place, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():
                raise
            with _one_writer(target):
                for name in sorted(os.listdir(place)):
                    os.replace(place / name, target / name)
            _finish(target)
    _finish(target.parent)


@contextmanager
@unbroken
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a folder's files: beside it, to take its place at the end; until then it is absent or empty.

    So it holds all that the block wrote or nothing, also where it was there before; everything is on the disk by then.

    Raises:
        OSError: the folder above cannot be made or written, what is there is a file or not empty by then.
    """
    target = Path(os.path.realpath(folder))
    with _there(target.parent), _temporary(target.parent, folder=True) as place:
        yield place
        _put(place, target)
    _finish(target.parent)


@contextmanager
@unbroken
def resumed_folder(folder: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """Where to write a folder's files so that a run that ended early can go on: `FOLDER.partial`, beside its place.

    What is in there from such a run is left to the block, which says by the file `marker` that it is its own. At the
    end everything is on the disk and renamed to `folder`, which until then is absent or empty. If the block raises, or
    the process is killed, `FOLDER.partial` stays, for another run or for the user to remove.

    Raises:
        OSError: the folder above cannot be made or written; `FOLDER.partial` is in use by another process, a
            file, or somebody else's (files without `marker`); `folder` is a file or not empty by the end.
    """
    target = Path(os.path.realpath(folder))
    place = target.with_name(f"{target.name}{PARTIAL}")
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        inside = [path.name for path in place.iterdir() if not _TEMPORARY.fullmatch(path.name)]
        if inside and marker not in inside:
            raise FileExistsError(errno.EEXIST, f"holds files, and no {marker} of an unfinished run", str(place))
        try:
            yield place
        except BaseException:
            with contextlib.suppress(OSError):  # nothing to go on with
                place.rmdir()
            raise
        _put(place, target)
    _finish(target.parent)


def _put(place: Path, target: Path) -> None:
    """A folder that is done takes its place, once all of it is on the disk."""
    if target.is_dir():
        place.chmod(stat.S_IMODE(target.stat().st_mode))
    for path in sorted(place.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    os.rename(place, target)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError where another process has locked a folder; locked within, where the system has locks."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = _open(folder)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another process is writing there", str(folder)) from None
        except OSError:  # a file system without locks
            pass
        _held.add(folder)
        try:
            yield
        finally:
            _held.discard(folder)
    finally:
        os.close(descriptor)


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Within, others that rename several files in `folder` wait. A temporary one is its writer's, who has locked it."""
    if os.name != "posix" or _TEMPORARY.fullmatch(folder.name) or folder in _held:
        yield
        return
    descriptor = _open(folder)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(parent: Path, folder: bool = False) -> Iterator[Path]:
    """A new file or folder, locked for as long as its writer lives, and removed at the end if it is still there."""
    while True:
        path = parent / f".fairkern-{secrets.token_hex(8)}.tmp"
        try:
            if folder:
                path.mkdir()
            else:
                path.touch(exist_ok=False)  # fails early, and has the caller's permissions
            with _claimed(path) as there:
                if there:
                    yield path
                    return
        finally:
            if folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Locks what was just made. False: another writer took it for a dead one's, and removed it before that."""
    if os.name != "posix":
        yield True
        return
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        yield False
        return
    try:
        _lock(descriptor, wait=True)
        yield os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), os.lstat(path))
    finally:
        os.close(descriptor)


def _finish(folder: Path) -> None:
    """Makes renames in `folder` last, and removes what dead writers left there, where the system can."""
    if os.name != "posix":
        return
    descriptor = _open(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError):  # somebody else's, or gone
            _remove_stale(path)


def _remove_stale(path: Path) -> None:
    descriptor = _open(path)
    try:
        if not _lock(descriptor, wait=False):  # its writer lives
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of a file or folder; links are not followed, and no pipe is waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether this descriptor alone holds the file now; False also where the file system has no such locks.

    The system gives the lock back with the descriptor, so also when the process is killed.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
