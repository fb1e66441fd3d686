"""Readers of files under coverage-guided fuzzing: `python -m bench.reliability.readers KIND OPTIONS-OF-LIBFUZZER`.

A program of its own, since the fuzzer takes the process: `fuzz.py` starts it. Inputs begin as files of today's layout
and of one before there were sums over a file's bytes; sums are made anew after every change, so that what lies behind
them is read too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import numpy as np

INSTRUMENTED = ("fairkern.artefacts", "fairkern.compact.checkpoint", "fairkern.report.files")
MODELS = ("listed", "attention", "sizes", "configured")  # files of all of them are what it begins with
READ_BY = {"weights": "configured"}  # the model that it is read into, where not the first: loading it is quick
OLDER = Path(__file__).parents[2] / "tests" / "fixtures" / "eb63876"
OLD_FILES = {
    "weights": "small/model.safetensors",
    "folder's plan": "small/plan.json",
    "scores": "scores.safetensors",
    "plan": "plan.json",
    "latency table": "latency.json",
    "report": "report.json",
}


def main(kind_name: str, options: list[str]) -> None:
    import atheris

    import fairkern as fk
    from bench.reliability.damages import damaged
    from bench.reliability.signing import NO_LAYOUT, signed
    from bench.reliability.subjects import KINDS, Made, make

    for function in _functions():
        atheris.instrument_func(function)
    warnings.simplefilter("ignore")
    kind = KINDS[kind_name]
    name = kind.file
    scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    place, corpus = Path(scratch.name) / "read", Path(scratch.name) / "corpus"
    corpus.mkdir()
    model = READ_BY.get(kind_name, MODELS[0])
    made: Made = make(model)
    place.mkdir()
    kind.write(made, place)
    files = [(place / name).read_bytes()]
    for other in (each for each in MODELS if each != model):
        folder = Path(scratch.name) / other
        folder.mkdir()
        kind.write(make(other), folder)
        files.append((folder / name).read_bytes())
    older = OLDER / ("latency" if kind_name == "latency table" else model) / OLD_FILES[kind_name]
    files.append(older.read_bytes())
    for i, data in enumerate(files):
        (corpus / str(i)).write_bytes(data)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """A change that knows the layout, or one of the fuzzer's own; mostly with the sum made anew."""
        draw = np.random.default_rng(seed)
        try:
            knowing = draw.random() < 0.5
            changed = damaged(name, data, files[int(draw.integers(len(files)))], draw)[1] if knowing else data
        except NO_LAYOUT:
            changed = data
        data = atheris.Mutate(data, most) if changed == data else changed
        return (signed(name, data) if draw.random() < 0.8 else data)[:most]

    def one(data: bytes) -> None:
        (place / name).write_bytes(data)
        try:
            kind.load(place, model)
        except fk.FairkernError as error:
            if not isinstance(error, (fk.ArtefactError, fk.PlanMismatchError)):
                raise

    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
    atheris.Fuzz()


def _functions() -> Iterator[FunctionType]:
    """Of the readers' modules alone: elsewhere bytecode that atheris 2.3 has rewritten has crashed."""
    for name, module in list(sys.modules.items()):
        if name.startswith(INSTRUMENTED):
            holders = [module, *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)]
            for holder in holders:
                found = [value for value in vars(holder).values() if isinstance(value, FunctionType)]
                yield from (function for function in found if function.__module__ == name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
