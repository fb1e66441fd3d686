"""All stages in a row, over and over in one process: nothing grows, and every round gives the same."""

from __future__ import annotations

import gc
import hashlib
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import fairkern as fk
from bench.reliability import isolated
from bench.reliability.rows import Row, Tally
from bench.reliability.state import Before, files, hooks, memory
from bench.reliability.subjects import LOSS, model_text, plan_text
from tests.fixtures.models import PLANNING, batches, build

COUNT, SEED = 400, 0  # rounds; minutes
MODELS = ("convolutions", "attention", "fused", "recurrent")
WARM = 0.25  # share of the rounds before memory counts: caches fill, the allocator settles
GROWTH = 16 * 2**10  # bytes a round: a model of these takes more, so one that stayed each round would show

SAME = "same result"
OTHER, LEFT, ESCAPED, GROWS = "another result", "something left behind", "an exception", "memory grows"
FAULTS = (OTHER, LEFT, ESCAPED, GROWS)


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    begun, tally, memories = time.perf_counter(), Tally(FAULTS), []
    for outcome, said, held in isolated.items(_rounds, seed, count):
        tally.add(outcome, said)
        memories.append(held)
    later = np.array(memories[int(len(memories) * WARM) :], dtype=float)
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else 0.0
    if slope > GROWTH and len(later) >= 50:
        tally.add(GROWS, f"{slope:.0f} bytes a round")
    measured = {"memory_first": memories[0], "memory_last": memories[-1], "bytes_a_round": slope}
    row = tally.row("soak", "trace, score, plan, cut, save, load", seed=seed, measured=measured)
    yield replace(row, count=len(memories), seconds=time.perf_counter() - begun)


def _rounds(seed: int, count: int) -> Iterator[tuple[str, str, int]]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first: dict[str, str] = {}
    models = {name: build(name, seed) for name in MODELS}
    for name, model in models.items():  # what this reads results with is made once
        model_text(model, name)
    opened, threads = {}, threading.active_count()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            name = MODELS[number % len(MODELS)]
            model, before = models[name], Before(models[name])
            try:
                found = _round(name, model, Path(scratch))
            except Exception as error:
                yield ESCAPED, f"round {number}, {name}: {type(error).__name__}: {error}"[:300], memory()
                continue
            gc.collect()
            left = before.differences()
            if hooks(model):
                left.append("hooks")
            if opened.setdefault(name, files()) != files():
                left.append(f"{files()} open files, {opened[name]} at first")
            if threading.active_count() != threads:
                left.append("threads")
            outcome = LEFT if left else SAME if first.setdefault(name, found) == found else OTHER
            yield outcome, f"round {number}, {name}: {', '.join(left[:4])}", memory()


def _round(name: str, model: torch.nn.Module, folder: Path) -> str:
    """Every stage once; a digest of what came out."""
    data = batches(name)
    units = fk.trace(model, data[0][0])
    scores = fk.score(model, data, LOSS, units=units, gram=True, class_of=False, progress=False)
    scores.save(folder / "scores")
    options = {**PLANNING[name], "allocation": "uniform", "removal": "taylor"}
    plan = fk.Scores.load(folder / "scores").plan(**options)
    plan.save(folder / "plan")
    plan = fk.Plan.load(folder / "plan")
    with plan.masked(model), torch.no_grad():
        model(data[0][0])
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    fk.save_pruned(small, plan, folder / name)
    again = fk.load_pruned(model, folder / name)
    return hashlib.sha256((plan_text(plan) + model_text(again, name)).encode()).hexdigest()
