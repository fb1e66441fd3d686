"""Two threads at once: right, or refused; and nothing left behind."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import torch

import fairkern as fk
from bench.reliability import isolated
from bench.reliability.rows import Row
from bench.reliability.state import Before, hooks
from bench.reliability.subjects import LOSS, plan_text
from tests.fixtures.models import PLANNING, batches, build

COUNT, SEED = 120, 0
MODELS = ("convolutions", "attention", "recurrent")
PATIENCE = 120.0  # seconds

RIGHT, REFUSED = "right", "InputError"
WRONG, ESCAPED = "another result", "another exception"
LEFT, HUNG = "something left behind", "does not end"
FAULTS = (WRONG, ESCAPED, LEFT, HUNG)
CASES = ("two models", "one model", "one model, traced and called")


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    """A row per case, `count` runs of two threads in all; what each thread gives is counted."""
    shares = {case: len(range(i, count, len(CASES))) for i, case in enumerate(CASES)}
    yield from isolated.rows("threads", _runs, shares, seed, FAULTS)


def _runs(case: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for number in range(count):
        name, draw = MODELS[number % len(MODELS)], random.Random(f"{seed} {case} {number}")
        data = batches(name)
        models = [build(name, 0), build(name, 1)] if case == "two models" else [build(name)] * 2
        units = [fk.trace(model, data[0][0]) for model in models]

        def planned(i: int) -> str:
            scores = fk.score(models[i], data, LOSS, units=units[i], class_of=False, gram=True, progress=False)  # noqa: B023
            return plan_text(scores.plan(**{**PLANNING[name], "allocation": "uniform", "removal": "taylor"}))  # noqa: B023

        with torch.no_grad():
            alone = models[0](data[0][0])

        def called(i: int) -> str:
            """Up to rounding, since a trace turns attention's fast path off for the process."""
            with torch.no_grad():
                gaps = [float((models[i](data[0][0]) - alone).abs().max()) for _ in range(15)]  # noqa: B023
            return str(max(gaps) < 1e-12 * float(alone.abs().max()))  # noqa: B023

        def traced(i: int) -> str:
            return str([(group.name, group.units) for group in fk.trace(models[i], data[0][0]).groups])  # noqa: B023

        works = [traced, called] if case == CASES[2] else [planned, planned]
        expected = [work(i) for i, work in enumerate(works)]
        before = Before(*dict.fromkeys(models))
        for outcome, said in _at_once(works, expected, draw):
            yield outcome, f"run {number}, {name}: {said}"
        left = before.differences()
        if left or any(map(hooks, models)):
            yield LEFT, f"run {number}, {name}: {', '.join(left[:4]) or 'hooks'}"


def _at_once(works: list[Callable[[int], str]], expected: list[str], draw: random.Random) -> Iterator[tuple[str, str]]:
    outcomes: dict[int, tuple[str, str]] = {}
    together = threading.Barrier(len(works))
    waits = [draw.random() * 0.02 for _ in works]

    def go(i: int) -> None:
        together.wait()
        time.sleep(waits[i])
        try:
            outcomes[i] = (RIGHT if works[i](i) == expected[i] else WRONG), works[i].__name__
        except fk.InputError as error:
            outcomes[i] = REFUSED, str(error)
        except Exception as error:
            outcomes[i] = ESCAPED, f"{type(error).__name__}: {error}"[:300]

    threads = [threading.Thread(target=go, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for i, thread in enumerate(threads):
        thread.join(PATIENCE)
        yield outcomes.get(i, (HUNG, ""))
