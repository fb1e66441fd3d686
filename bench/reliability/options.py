"""Every option of every public function with values of the wrong kind: InputError that names the option."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

import fairkern as fk
from bench.reliability.rows import Row, Tally
from tests.test_wrong_options import FUNCTIONS, Parts

COUNT, SEED = 10**6, 0  # all of them; fewer are drawn

REFUSED, TAKEN, UNNAMED, ESCAPED = "InputError", "taken", "InputError that does not name it", "another exception"
FAULTS = (TAKEN, UNNAMED, ESCAPED)


def run(seed: int = SEED, count: int = COUNT) -> Iterator[Row]:
    begun, tally = time.perf_counter(), Tally(FAULTS)
    cases = [
        (name, option, kind)
        for name, (_, _, options) in FUNCTIONS.items()
        for option, accepted in options.items()
        for kind in accepted.wrong
    ]
    if count < len(cases):
        cases = [cases[i] for i in sorted(np.random.default_rng(seed).choice(len(cases), count, replace=False))]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = Parts(Path(folder))
        for name, option, kind in cases:
            tally.add(*_outcome(parts, name, option, kind))
    row = tally.row("options", "values of the wrong kind", seed=seed, measured={"functions": len(FUNCTIONS)})
    yield replace(row, seconds=time.perf_counter() - begun)


def _outcome(parts: Parts, name: str, option: str, kind: str) -> tuple[str, str]:
    function, base, options = FUNCTIONS[name]
    what = f"{name}, {option}, {kind}"
    try:
        function(**{**base(parts), option: options[option].wrong[kind]})
    except fk.InputError as error:
        named = option in str(error) or option.replace("_", " ") in str(error)
        return (REFUSED if named else UNNAMED), f"{what}: {error}"
    except Exception as error:
        return ESCAPED, f"{what}: {type(error).__name__}: {error}"[:300]
    return TAKEN, what
