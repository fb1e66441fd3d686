"""Ctrl-C at any moment: the model, the process and the folder are as they were."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fairkern as fk
from bench.reliability import isolated
from bench.reliability.rows import Row
from bench.reliability.state import Before, hooks
from bench.reliability.subjects import LOSS, make
from tests.fixtures.models import PLANNING, batches, build

COUNT, SEED = 360, 0
MODELS = ("convolutions", "attention", "fused")

DONE, INTERRUPTED = "done before it", "interrupted, all as before"
LEFT, WRONG, ESCAPED = "something left behind", "another result afterwards", "another exception"
LOST = "interrupt that nobody hears of"
FAULTS = (LEFT, WRONG, ESCAPED, LOST)

Work = Callable[[], object]


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """A row per kind of work, `count` interrupts in all."""
    shares = {case: len(range(i, count, len(CASES))) for i, case in enumerate(CASES)}
    yield from isolated.rows("interrupts", _interrupts, shares, seed, FAULTS)


def _trace(name: str, model: nn.Module, folder: Path) -> Work:
    x = batches(name)[0][0]
    return lambda: fk.trace(model, x)


def _score(name: str, model: nn.Module, folder: Path) -> Work:
    data = batches(name)
    units = fk.trace(model, data[0][0])
    return lambda: fk.score(model, data, LOSS, units=units, gram=True, class_of=False, progress=False)


def _masked(name: str, model: nn.Module, folder: Path) -> Work:
    data, made = batches(name), make(name)

    def work() -> None:
        for _ in range(20):
            with made.plan.masked(model), torch.no_grad():
                model(data[0][0])

    return work


def _prune(name: str, model: nn.Module, folder: Path) -> Work:
    """With layers refitted one after the other, which takes threads."""
    options = {k: v for k, v in PLANNING[name].items() if k != "tod"}
    return lambda: fk.prune(model, batches(name), LOSS, class_of=False, progress=False, **options)


def _save(name: str, model: nn.Module, folder: Path) -> Work:
    made = make(name)

    def work() -> None:
        fk.save_pruned(made.small, made.plan, folder / "small")
        made.scores.save(folder / "scores")
        fk.load_pruned(model, folder / "small")

    return work


CASES: dict[str, Callable[[str, nn.Module, Path], Work]] = {
    "trace": _trace,
    "score": _score,
    "plan.masked": _masked,
    "prune": _prune,
    "save and load": _save,
}


def _interrupts(case: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """SIGINT from another thread, after a time that is drawn from what the work takes."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background begins with none
    torch.set_num_threads(1)
    draw = np.random.default_rng([seed, list(CASES).index(case)])
    for number in range(count):
        name = MODELS[number % len(MODELS)]
        if number < len(MODELS):
            _prepared(case, name)
        model, work, takes, folder, expected = _prepared(case, name)
        here = sorted(os.listdir(folder))
        before = Before(model)
        outcome, said = _interrupted(work, draw.uniform(0, 0.8 * takes))
        left = before.differences()
        for again in (False, True):
            if outcome in (DONE, INTERRUPTED) and left:
                outcome, said = LEFT, ", ".join(left[:4])
            elif outcome in (DONE, INTERRUPTED) and hooks(model):
                outcome, said = LEFT, "hooks"
            if again or outcome not in (DONE, INTERRUPTED):
                break
            work()  # once more: it runs, and leaves nothing either
            left = before.differences()
            if sorted(os.listdir(folder)) != here:
                outcome, said = LEFT, f"files {sorted(os.listdir(folder))}"
        if outcome in (DONE, INTERRUPTED) and _given(model, name) != expected:
            outcome, said = WRONG, ""
        if outcome not in (DONE, INTERRUPTED):
            _KEPT.pop((case, name))  # what is damaged is not tried again
        yield outcome, f"interrupt {number}, {name}: {said}"


_KEPT: dict[tuple[str, str], tuple[nn.Module, Work, float, Path, bytes]] = {}
_FOLDERS: list[tempfile.TemporaryDirectory] = []


def _prepared(case: str, name: str) -> tuple[nn.Module, Work, float, Path, bytes]:
    if (case, name) not in _KEPT:
        _FOLDERS.append(tempfile.TemporaryDirectory())
        model, folder = build(name), Path(_FOLDERS[-1].name)
        work = CASES[case](name, model, folder)
        work()
        begun = time.perf_counter()
        work()
        _KEPT[case, name] = model, work, time.perf_counter() - begun, folder, _given(model, name)
    return _KEPT[case, name]


def _given(model: nn.Module, name: str) -> bytes:
    with torch.no_grad():
        return model(batches(name)[0][0]).numpy().tobytes()


def _interrupted(work: Work, after: float) -> tuple[str, str]:
    stop, sent = threading.Event(), threading.Event()
    sender = threading.Thread(target=_send, args=(after, stop, sent), daemon=True)
    try:
        try:
            sender.start()
            work()
        finally:
            stop.set()
            sender.join()
    except KeyboardInterrupt:
        return INTERRUPTED, ""
    except Exception as error:
        return ESCAPED, f"{type(error).__name__}: {error}"[:300]
    return (LOST if sent.is_set() else DONE), ""


def _send(after: float, stop: threading.Event, sent: threading.Event) -> None:
    if not stop.wait(after):
        sent.set()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
