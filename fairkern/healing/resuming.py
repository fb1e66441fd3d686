"""A run that was interrupted goes on: one file with weights, the optimizer's state and what was seen by then."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fairkern.artefacts.contents import read_content, write_content
from fairkern.artefacts.files import plain
from fairkern.artefacts.writing import whole_folder
from fairkern.errors import ArtefactError, InputError
from fairkern.healing.weights import Weights
from fairkern.model.sums import sum_of_model

FILE = "healing.safetensors"


@dataclass
class Progress:
    """What was done by now. `losses`: one per step; `first`: a sum of the first batch; `shifted`: whether labels stand
    one position behind the answers, once that is known; `hidden`: which modules were compared; `cut` and `uncut`: sums
    of the models that the run began with, empty where nothing is written."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    first: str = ""
    shifted: bool | None = None
    hidden: list[str] = field(default_factory=list)
    cut: str = ""
    uncut: str = ""

    @property
    def steps(self) -> int:
        return len(self.losses)


def save(folder: str, small: nn.Module, weights: Weights, progress: Progress, said: Mapping[str, Any]) -> None:
    """Atomically: the folder holds what was there before, or all of this."""
    content = plain({"settings": said, "progress": asdict(progress), "now": sum_of_model(small)}, "healing")
    with whole_folder(folder) as place:
        write_content(place / FILE, "healing", weights.state(), content)


def load(folder: str, small: nn.Module, model: nn.Module, weights: Weights, said: Mapping[str, Any]) -> Progress:
    """What `save` wrote, put into the weights; a beginning where there is nothing yet.

    Raises ArtefactError (damaged, foreign, newer, of other models), InputError (of a call with other options).
    """
    path = Path(folder) / FILE
    cut, uncut = sum_of_model(small), sum_of_model(model)
    if not os.path.lexists(path):
        return Progress(cut=cut, uncut=uncut)
    tensors, content = read_content(path, "healing", "remove it to begin anew")
    before = content["settings"].mapping()
    other = [name for name, value in said.items() if before.get(name) != value]
    if other:
        name = other[0]
        raise InputError(
            f"{path} was written by heal({name}={before.get(name)!r}, …), and {name}={said[name]!r} is given here; "
            "make the same call to go on with it, or give another folder as checkpoint"
        )
    entry = content["progress"]
    progress = Progress(
        losses=[item.number() for item in entry["losses"].items()],
        seconds=entry["seconds"].number(),
        samples=entry["samples"].whole(),
        tokens=entry["tokens"].whole(),
        first=entry["first"].text(),
        shifted=None if entry["shifted"].value is None else entry["shifted"].flag(),
        hidden=[item.text() for item in entry["hidden"].items()],
        cut=entry["cut"].text(),
        uncut=entry["uncut"].text(),
    )
    if not 0 < progress.steps <= said["steps"]:
        entry.fail(f"{progress.steps} of {said['steps']} steps")
    misfit = weights.misfit(tensors)
    if misfit is not None:
        raise ArtefactError(f"{path} was written for another model: {misfit}; give another folder as checkpoint")
    if cut not in (progress.cut, content["now"].text()):  # other cuts of the same model have the same shapes
        raise ArtefactError(
            f"{path} was written for another cut model: the weights of small are neither those that the run began with "
            "nor those that it had reached there; give small as it was cut, or another folder as checkpoint"
        )
    if uncut != progress.uncut:
        raise ArtefactError(
            f"{path} was written with another uncut model: the weights of model are not those that the run began with; "
            "give the same model, or another folder as checkpoint"
        )
    weights.load(tensors)
    return progress
