"""`python -m tests.limited CASE OPTIONS SHARE …`: what comes of a case under a real limit of its address space.

The process imports and builds what a case takes; each run is then a child of its own, which may map what is mapped
already, its budget, and `SLACK` more. Prints a line of JSON per run.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fairkern as fk

SLACK = {"language": 40 * 10**6, "images": 64 * 10**6}  # less than is promised: small models show what is held


class Language(nn.Module):
    """Wide layers with few weights, so that second moments are what takes memory."""

    def __init__(self, width: int = 512, narrow: int = 8, layers: int = 40) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, narrow), nn.Linear(narrow, 11)
        self.up = nn.ModuleList(nn.Linear(narrow, width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(width, narrow) for _ in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x).transpose(1, 2)


def language() -> tuple[nn.Module, Any, fk.UnitMap, dict[str, Any]]:
    model = Language().eval()
    ids = torch.randint(0, 11, (6, 8), generator=torch.Generator().manual_seed(1))
    units = fk.trace(model, ids[:2], verify=False)
    return model, [(x, x) for x in ids.split(2)], units, {"class_of": False, "gram": True}


def images() -> tuple[nn.Module, Any, fk.UnitMap, dict[str, Any]]:
    """Of many channels, with class samples of each."""
    widths = (3, 192, 288, 384, 384)
    convs = [m for a, b in itertools.pairwise(widths) for m in (nn.Conv2d(a, b, 1), nn.ReLU())]
    model = nn.Sequential(*convs, nn.Conv2d(384, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    batches = list(zip(x.split(8), (torch.arange(96) % 4).split(8), strict=True))
    return model, batches, fk.trace(model, x[:2], verify=False), {}


def scored(case: tuple[nn.Module, Any, fk.UnitMap, dict[str, Any]], budget: int | None, how: dict[str, Any]) -> Any:
    model, batches, units, options = case
    given = {**options, **how, "memory_budget": budget}
    scores = fk.score(model, batches, nn.CrossEntropyLoss(), units=units, progress=False, **given)
    removed = [group.removed.tolist() for group in scores.plan(keep_params=0.5).groups]
    return {"plan": removed, "passes": scores.provenance["passes"], "predicted": scores.provenance["predicted_bytes"]}


CASES: dict[str, Callable[[], tuple[nn.Module, Any, fk.UnitMap, dict[str, Any]]]] = {
    "language": language,
    "images": images,
}


def run(work: Callable[[], Any], allowed: int | None) -> Any:
    """In a child: what `work` gives, or the kind of error and its text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if allowed is not None:
                resource.setrlimit(resource.RLIMIT_AS, (_mapped() + allowed,) * 2)
            found = {"found": work()}
        except BaseException as error:
            found = {"error": type(error).__name__, "says": str(error), "trace": traceback.format_exc()[-6000:]}
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(found))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"error": "killed", "says": ""}


def _mapped() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))


def main(name: str, options: str, *shares: str) -> None:
    """What comes of a case without budget and limit, without budget, with one that is too small, and with these shares
    of the least that would do. `options`: JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    case, how = CASES[name](), json.loads(options)
    runs = [(None, False), (None, True), (1, True)]
    while runs:
        budget, limited = runs.pop(0)
        allowed = SLACK[name] + (budget or 0) if limited else None
        found = run(partial(scored, case, budget, how), allowed)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        if budget == 1 and shares:
            least = int(found["says"].split("least that would do is ")[1].split(" ")[0].replace(",", ""))
            runs += [(int(least * float(share)), True) for share in shares]


if __name__ == "__main__":
    main(*sys.argv[1:])
