"""Folders that users name to be written: looked at before an hour's work; what comes along."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fairkern.errors import InputError

_BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece*",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def check_out(out: str | os.PathLike[str]) -> Path:
    """The path, if a folder can come to be there: it is new or empty. Better known before an hour's work.

    Raises InputError.
    """
    path = Path(out)
    if path.is_file() or (path.is_symlink() and not path.exists()):
        raise InputError(f"cannot write {path}: it is a file, and a folder is expected")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"cannot write {path}: it is not empty; name a new folder, or empty this one")
    with said_of(path):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if path.is_mount():
            raise InputError(f"cannot write {path}: something is mounted there; name a folder within it")
        if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {path}: no permission in {path.absolute().parent}")
    try:  # permission says nothing of /proc, nor of what is mounted to be read
        with tempfile.TemporaryDirectory(prefix=".fairkern-", dir=Path(os.path.realpath(path)).parent):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {path}: no folder can be made in {path.absolute().parent} ({error.strerror or error})"
        ) from None
    return path


def copy_beside(like: Path, place: Path, *, code: bool) -> None:
    """Tokenizer, chat template and licence, as they are; the folder's code, where `code` says that it is what runs."""
    patterns = (*_BESIDE, *(("*.py",) if code else ()))
    for path in sorted(like.iterdir()):
        if path.is_file() and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            shutil.copyfile(path, place / path.name)
    templates = like / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, place / templates.name, copy_function=shutil.copyfile)


@contextlib.contextmanager
def said_of(out: Path) -> Iterator[None]:
    """What the system refuses, as an error of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
