"""Damaged files of every kind are refused, or read as if nothing were."""

from __future__ import annotations

import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch

import fairkern as fk
from bench.reliability import isolated
from bench.reliability.damages import damaged
from bench.reliability.rows import Row, Tally
from bench.reliability.subjects import KINDS, Kind, make, mirrored, retrained

COUNT, SEED = 20_000, 0
MODELS = ("convolutions", "attention", "sizes", "fused", "listed", "recurrent", "configured")
ROOM = 2**28  # bytes that a reader may take beyond what the process has; the files are below 100 kB
PATIENCE = 20.0  # seconds for one file
MIXED = "mixed folders"  # every file whole, of one save or of another
CASES = (*KINDS, MIXED)

REFUSED, SAME = "ArtefactError", "read as it was"
DIFFERENT, ESCAPED = "another result", "another exception"
MEMORY, SLOW = "memory", f"over {PATIENCE:.0f} s"
FAULTS = (DIFFERENT, ESCAPED, MEMORY, SLOW, isolated.DIED)


class _TooSlow(BaseException):
    pass


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """A row per kind of file."""
    begun = time.perf_counter()
    tallies = {case: Tally(FAULTS) for case in CASES}
    done = 0
    while done < count:
        try:
            for number, outcome, said in isolated.items(tried, seed, done, count):
                tallies[CASES[number % len(CASES)]].add(outcome, said)
                done = number + 1
        except isolated.Died as died:  # by the first file that was not told of
            tallies[CASES[done % len(CASES)]].add(isolated.DIED, f"case {done}: {died}")
            done += 1
    share = (time.perf_counter() - begun) / len(CASES)
    for case, tally in tallies.items():
        yield replace(tally.row("damage", case, seed=seed), seconds=share)


def tried(seed: int, start: int, stop: int) -> Iterator[tuple[int, str, str]]:
    """(number, outcome, what was done) of every case of these numbers; a number and a seed make a case, whole."""
    warnings.simplefilter("ignore")  # files of older layouts are read with a note
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as scratch:
        originals = _originals(Path(scratch))
        _limit_memory()
        place = Path(scratch) / "tried"
        for number in range(start, stop):
            draw = np.random.default_rng([seed, number])
            case, model = CASES[number % len(CASES)], MODELS[int(draw.integers(len(MODELS)))]
            what, kind, accepted = _damage(case, model, originals, place, draw)
            outcome, said = _outcome(kind, place, model, accepted)
            shutil.rmtree(place)
            yield number, outcome, f"case {number}, {model}, {what}{said and ': '}{said}"


class _Original:
    """Valid files of one kind and model, twice or three times, and what their readers make of them."""

    def __init__(self, kind: Kind, model: str, folders: list[Path]) -> None:
        self.kind, self.folders = kind, folders
        self.texts = [kind.read(folder, model) for folder in folders]


def _originals(scratch: Path) -> dict[tuple[str, str], _Original]:
    found = {}
    for model in MODELS:
        made = make(model)
        versions = (made, mirrored(made), retrained(made))
        for name, kind in KINDS.items():
            folders = []
            for i, version in enumerate(versions):
                folder = scratch / model / name / str(i)
                folder.mkdir(parents=True)
                kind.write(version, folder)
                folders.append(folder)
            found[model, name] = _Original(kind, model, folders)
    return found


def _damage(
    case: str, model: str, originals: dict[tuple[str, str], _Original], place: Path, draw: np.random.Generator
) -> tuple[str, Kind, set[str]]:
    """Fills `place`. What was done, how to read it, and what may come of it."""
    original = originals[model, "weights" if case == MIXED else case]
    if case == MIXED:
        place.mkdir()
        chosen = [int(draw.integers(len(original.folders))) for _ in range(2)]
        names = ("model.safetensors", "plan.json")
        for name, i in zip(names, chosen, strict=True):
            shutil.copy(original.folders[i] / name, place / name)
        if draw.random() < 0.1:
            (place / names[int(draw.integers(2))]).unlink()
        return f"files of saves {chosen}", original.kind, set(original.texts)
    shutil.copytree(original.folders[0], place)
    name = original.kind.file
    data, other = (place / name).read_bytes(), (original.folders[int(draw.integers(1, 3))] / name).read_bytes()
    way, written = damaged(name, data, other, draw)
    while written == data:
        way, written = damaged(name, data, other, draw)
    (place / name).write_bytes(written)
    accepted = {original.texts[0]}
    if written == other:
        accepted |= set(original.texts)
    return way, original.kind, accepted


def _outcome(kind: Kind, place: Path, model: str, accepted: set[str]) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        text = kind.read(place, model)
    except fk.ArtefactError as error:
        return REFUSED, str(error)
    except _TooSlow:
        return SLOW, ""
    except MemoryError as error:
        return MEMORY, repr(error)[:200]
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
        return (MEMORY if "allocate memory" in what else ESCAPED), what
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return (SAME, "") if text in accepted else (DIFFERENT, "")


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise _TooSlow
