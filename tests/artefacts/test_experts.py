"""Scores, plans and pruned models of experts come back from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

import fairkern as fk
from fairkern.prove import difference
from fairkern.types import Plan
from tests.experts import build, samples


def test_plans_scores_and_models_come_back_from_files(tmp_path: Path) -> None:
    model, (x, y) = build(shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    scores.save(tmp_path / "scores")
    again = fk.Scores.load(tmp_path / "scores")
    for a, b in zip(scores.units.groups, again.units.groups, strict=True):
        assert (a.sets, a.least, [x.silence for x in a.axes]) == (b.sets, b.least, [x.silence for x in b.axes])
    plan = scores.plan(keep_params=0.5)
    plan.save(tmp_path / "plan")
    assert same_plan(plan, again.plan(keep_params=0.5))
    assert same_plan(plan, fk.Plan.load(tmp_path / "plan"))
    small = fk.apply(model, plan)
    fk.save_pruned(small, plan, tmp_path / "small")
    loaded = fk.load_pruned(build(shared=True, seed=5), tmp_path / "small")
    assert difference(small, loaded, x) == 0
    assert loaded.experts.num_experts == len(loaded.experts.down_proj)


def same_plan(a: Plan, b: Plan) -> bool:
    pairs = [*zip(a.groups, b.groups, strict=True), *zip(a.axes, b.axes, strict=True)]
    return all(np.array_equal(p.removed, q.removed) and vars(p).keys() == vars(q).keys() for p, q in pairs)
