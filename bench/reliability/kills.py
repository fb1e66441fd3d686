"""Writers that are killed at any moment, and readers beside a writer: the old, the new, or ArtefactError."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import fairkern as fk
from bench.reliability import isolated
from bench.reliability.rows import Row
from bench.reliability.subjects import KINDS, make, mirrored

COUNT, SEED = 300, 0
MODEL = "convolutions"
NEW_FOLDER, BESIDE = "folder that was not there", "folder, read beside a writer"
FILES = {
    "pruned folder": "weights",
    NEW_FOLDER: "weights",
    **{kind: kind for kind in ("scores", "plan", "latency table", "report")},
}
CASES = tuple(FILES)

OLD, NEW, REFUSED, ABSENT = "old", "new", "ArtefactError", "nothing there"
MIXED, ESCAPED, UNRECOVERED, LEFT = "something else", "another exception", "next write does not recover", "files left"
FAULTS = (MIXED, ESCAPED, UNRECOVERED, LEFT)


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """A row per kind of file, `count` kills in all, and one for `count` readings beside a writer."""
    shares = {case: len(range(i, count, len(CASES))) for i, case in enumerate(CASES)}
    yield from isolated.rows("kills", _tries, {**shares, BESIDE: count}, seed, FAULTS)


def _tries(case: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    torch.set_num_threads(1)
    return _readings(count) if case == BESIDE else _kills(case, seed, count)


def _kills(case: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """The writer is a fork that writes what it holds; when it is killed is drawn from the time that a write takes."""
    draw = np.random.default_rng([seed, CASES.index(case)])
    kind = KINDS[FILES[case]]
    old, new = make(MODEL), mirrored(make(MODEL))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "written"
        texts, takes = {}, 0.0
        for name, made in ((NEW, new), (OLD, old)):
            _remove(folder)
            folder.mkdir()
            kind.write(made, folder)
            begun = time.perf_counter()
            kind.write(made, folder)
            takes = max(takes, time.perf_counter() - begun)
            texts[name] = kind.read(folder, MODEL)
        files = sorted(os.listdir(folder))
        for number in range(count):
            _remove(folder)
            if case != NEW_FOLDER:
                folder.mkdir()
                kind.write(old, folder)
            killed = _killed(lambda: kind.write(new, folder), draw.uniform(0, 1.5 * takes))
            outcome, said = _read(lambda: kind.read(folder, MODEL), texts, folder)
            if killed and outcome in (OLD, NEW, REFUSED, ABSENT):
                kind.write(new, folder)
                after, why = _read(lambda: kind.read(folder, MODEL), texts, folder)
                left = sorted({*os.listdir(folder), *os.listdir(scratch)} - {*files, folder.name})
                if after != NEW:
                    outcome, said = UNRECOVERED, f"{after} {why}"
                elif left:
                    outcome, said = LEFT, ", ".join(left)
            for name in set(os.listdir(scratch)) - {folder.name}:
                _remove(Path(scratch) / name)
            yield outcome if killed else "written before the kill", f"kill {number}: {said}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _killed(write: Callable[[], None], after: float) -> bool:
    """Whether it was killed before it was done."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:  # nothing here may return into the parent's code
        try:
            os.write(tells, b".")
            write()
        finally:
            os._exit(0)
    os.read(told, 1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(told)
    os.close(tells)
    return os.WIFSIGNALED(status)


def _read(read: Callable[[], str], texts: dict[str, str], folder: Path) -> tuple[str, str]:
    try:
        text = read()
    except fk.ArtefactError as error:
        return (REFUSED, str(error)) if folder.exists() else (ABSENT, "")
    except Exception as error:
        return ESCAPED, f"{type(error).__name__}: {error}"[:300]
    return next((name for name, known in texts.items() if known == text), MIXED), ""


def _readings(count: int) -> Iterator[tuple[str, str]]:
    """While a fork writes the old and the new in turn into one folder, without a pause."""
    kind, old = KINDS["weights"], make(MODEL)
    new = mirrored(old)
    with tempfile.TemporaryDirectory() as scratch:
        folder, texts = Path(scratch) / "written", {}
        for name, made in ((NEW, new), (OLD, old)):
            kind.write(made, folder)
            texts[name] = kind.read(folder, MODEL)
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for made in (new, old):
                        kind.write(made, folder)
            finally:
                os._exit(1)
        try:
            for number in range(count):
                outcome, said = _read(lambda: kind.read(folder, MODEL), texts, folder)
                yield outcome, f"reading {number}: {said}"
            alive = os.waitpid(child, os.WNOHANG) == (0, 0)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if not alive:
            yield ESCAPED, "the writer ended by itself"
