"""Pruned models of the zoo, loaded again by a process that never held the model that was saved."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

import fairkern as fk
from bench.zoo.catalogue import entries
from bench.zoo.entry import Entry, prepared
from fairkern.model.nested import call_model, tensors_in
from fairkern.types import Plan


class Reloader:
    """A second process; `agrees` saves a pruned model and asks it for the model's outputs."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __enter__(self) -> Reloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown()

    def agrees(self, entry: Entry, seed: int, small: nn.Module, plan: Plan, inputs: Any) -> bool:
        """Whether the other process, given the files, the inputs and the entry's name, computes the same bits."""
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            fk.save_pruned(small, plan, f"{folder}/small")
            torch.save(inputs, f"{folder}/inputs.pt")
            self._process.submit(_outputs, entry.library, entry.name, seed, folder).result()
            found = torch.load(Path(folder) / "outputs.pt")
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # on several, products may be shared out otherwise in another process
            try:
                torch.manual_seed(seed)
                expected = list(tensors_in(call_model(small, inputs)))
            finally:
                torch.set_num_threads(threads)
        return len(found) == len(expected) and all(map(torch.equal, found, expected))


def _outputs(library: str, name: str, seed: int, folder: str) -> None:
    """In the other process: a fresh model of that name, cut and filled from the files, on the inputs."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    entry = next(e for e in entries(library) if e.name == name)
    torch.manual_seed(seed)
    fresh, _ = prepared(*entry.load())
    inputs = torch.load(f"{folder}/inputs.pt", weights_only=False)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
        small = fk.load_pruned(fresh, f"{folder}/small")
        torch.manual_seed(seed)
        torch.save(list(tensors_in(call_model(small, inputs))), f"{folder}/outputs.pt")
