"""Small models and the files that are written of them: what the parts damage, interrupt and read."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.artefacts import load_latency, save_latency
from fairkern.artefacts.plans import plan_payload
from fairkern.artefacts.units import IndexPool, units_content
from fairkern.plans.build import build as build_plan
from fairkern.plans.removals import NONE
from fairkern.types import LatencyTable
from tests.fixtures.models import PLANNING, SCORING, batches, build

LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Made:
    """All that is made of one model, before it is saved."""

    name: str
    scores: fk.Scores
    plan: fk.Plan
    small: nn.Module
    report: fk.Report
    table: LatencyTable


def make(name: str, seed: int = 0) -> Made:
    """Of a model of `tests/fixtures`; another seed gives other weights."""
    model, data = build(name, seed), batches(name)
    scores = fk.score(model, data, LOSS, progress=False, **SCORING[name])
    plan = scores.plan(**PLANNING[name])
    small = fk.apply(model, plan)
    report = fk.summarise(plan, scores=scores, small=small, stages={"cut": 0.5})
    layers = {group.name: {"fixed": 0.25, "elements": 0.75} for group in scores.units.groups}
    shapes = dict(scores.units.shapes)
    table = LatencyTable(layers, {"fixed": 0.5}, {}, tuple(shapes), shapes, 3.25, 0.01, {"device": "made up"})
    return Made(name, scores, plan, small, report, table)


def mirrored(made: Made) -> Made:
    """As many units of every group, but others: its files have the shapes of those of `made`, and other contents."""
    gone = {group.name: np.sort(group.units - 1 - group.removed, axis=-1) for group in made.plan.groups}
    removals = [gone.get(group.name, NONE) for group in made.scores.units.groups]
    plan = fk.Plan(**vars(build_plan(made.scores.units, removals, made.plan.request)))
    return replace(made, plan=plan, small=fk.apply(build(made.name), plan))


def retrained(made: Made) -> Made:
    """The same plan, other weights."""
    return replace(made, small=fk.apply(build(made.name, seed=5), made.plan))


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is written into a folder, what reads it, and that as plain text, by which it is told."""

    file: str  # which of the files is damaged
    write: Callable[[Made, Path], None]
    load: Callable[[Path, str], Any]  # the folder, the model's name
    text: Callable[[Any, str], str]

    def read(self, folder: Path, model: str) -> str:
        return self.text(self.load(folder, model), model)


def plan_text(plan: fk.Plan) -> str:
    return json.dumps(plan_payload(plan), sort_keys=True)


def _array(values: Any) -> list[Any]:
    tensor = torch.as_tensor(values)
    stored = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(stored).hexdigest()]


def _scores_text(scores: fk.Scores) -> str:
    pool = IndexPool()
    content = {
        "units": units_content(scores.units, pool),
        "index": _array(pool.joined()),
        "signals": {name: [_array(values) for values in groups] for name, groups in scores.signals.items()},
        "means": {name: _array(values) for name, values in scores.means.items()},
        "moments": {name: [_array(m.gram), _array(m.total), m.count, m.per_unit] for name, m in scores.moments.items()},
        "grids": {
            name: sorted((*grid, count) for grid, count in sizes.items()) for name, sizes in scores.grids.items()
        },
        "provenance": scores.provenance,
    }
    return json.dumps(content, sort_keys=True)


@functools.cache
def _given(name: str) -> tuple[nn.Module, Tensor]:
    """An unpruned model of other weights, and inputs."""
    return build(name, seed=9), batches(name)[0][0][:3]


def model_text(model: nn.Module, name: str) -> str:
    """Every tensor to the bit, every size that a module holds, and what the model gives."""
    with torch.no_grad():
        result = model(_given(name)[1])
    state = {key: _array(value) for key, value in model.state_dict().items()}
    sizes = {
        path: {k: v for k, v in vars(module).items() if isinstance(v, int)} for path, module in model.named_modules()
    }
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    return json.dumps([state, sizes, classes, _array(result)], sort_keys=True)


def _save_pruned(made: Made, folder: Path) -> None:
    fk.save_pruned(made.small, made.plan, folder)


def _load_pruned(folder: Path, name: str) -> nn.Module:
    return fk.load_pruned(_given(name)[0], folder)


def _fields(value: Any, name: str) -> str:
    return json.dumps(vars(value), sort_keys=True)


KINDS: dict[str, Kind] = {
    "weights": Kind("model.safetensors", _save_pruned, _load_pruned, model_text),
    "folder's plan": Kind("plan.json", _save_pruned, _load_pruned, model_text),
    "scores": Kind(
        "scores.safetensors",
        lambda made, folder: made.scores.save(folder / "scores.safetensors"),
        lambda folder, name: fk.Scores.load(folder / "scores.safetensors"),
        lambda scores, name: _scores_text(scores),
    ),
    "plan": Kind(
        "plan.json",
        lambda made, folder: made.plan.save(folder / "plan.json"),
        lambda folder, name: fk.Plan.load(folder / "plan.json"),
        lambda plan, name: plan_text(plan),
    ),
    "latency table": Kind(
        "latency.json",
        lambda made, folder: save_latency(made.table, folder / "latency.json"),
        lambda folder, name: load_latency(folder / "latency.json"),
        _fields,
    ),
    "report": Kind(
        "report.json",
        lambda made, folder: replace(made.report, plan=None).save(folder / "report.json"),
        lambda folder, name: fk.Report.load(folder / "report.json"),
        _fields,
    ),
}
