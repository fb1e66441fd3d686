"""Allocation over whole experts and over their inner units, each expert a set of its own."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

import fairkern as fk
from bench.zoo.mixtures import Dense, OneHot
from fairkern.allocate.latency import latency_cost
from fairkern.plans.build import build as plan_of
from tests.experts import EXPERTS, INNER, build, samples, the
from tests.listed import UNEVEN, X, batches, every_mixture, experts_of, net, size


def test_one_removal_count_for_all_sets_at_the_tolerance_of_their_overlaps() -> None:
    """ToD of a group with sets: overlaps counted within each set, summed, over k · sets."""
    model, (x, y) = build(), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), progress=False)
    g = the(scores.units, "expert neuron")
    u, r = (scores.signals[s][g].reshape(EXPERTS, INNER) for s in ("wasserstein", "taylor"))
    curve = []
    for k in range(1, INNER + 1):
        low = [set(np.argsort(row, kind="stable")[:k].tolist()) for row in u]
        high = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in r]
        curve.append(sum(len(a & b) for a, b in zip(low, high, strict=True)) / (k * EXPERTS))
    for tolerance in (0.0, 0.2, 0.4, 0.6, 0.8):
        removed = next(p for p in scores.plan(tod=tolerance).groups if p.kind == "expert neuron").removed
        allowed = [k for k in range(1, INNER) if curve[k - 1] <= tolerance]
        assert (removed.shape[-1] if removed.size else 0) == max(allowed, default=0)
        for row, gone in zip(u, removed, strict=False):
            assert set(gone) == set(np.argsort(row, kind="stable")[: len(gone)].tolist())


@every_mixture
def test_budgets_count_the_experts_that_go(mixture: type[nn.Module]) -> None:
    model = net(mixture, sizes=UNEVEN)
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, progress=False)
    gone = 0
    for keep in (0.8, 0.6, 0.5, 0.45):
        plan = scores.plan(keep_params=keep)
        small = fk.apply(model, plan)
        assert size(small) == plan.result["params_after"] <= keep * size(model)
        gone += sum(len(g.removed) for g in plan.groups if g.kind == "expert")
    assert gone
    only = scores.plan(tod=1.0, ignore=["layers.*.experts.*"])
    assert {len(g.removed) for g in only.groups if g.kind == "expert"} <= {3, 4, 2}


def test_every_step_given_back_would_exceed_the_budget() -> None:
    model = net(OneHot, sizes=UNEVEN)
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, progress=False)
    plan = scores.plan(keep_params=0.55, allocation="uniform", removal="wasserstein")
    removed = {g.name: g.removed for g in plan.groups}
    alike: dict[object, list[int]] = {}
    for g in units.prunable:
        alike.setdefault((units.groups[g].kind, units.groups[g].units), []).append(g)
    for members in alike.values():
        (count,) = {len(removed[units.groups[g].name]) for g in members}
        if not count:
            continue
        fewer = [removed.get(group.name, ()) for group in units.groups]
        for g in members:
            fewer[g] = np.argsort(scores.signals["wasserstein"][g], kind="stable")[: count - 1]
        more = plan_of(units, [np.asarray(r, dtype=np.int64) for r in fewer])
        assert more.result["params_after"] > 0.55 * size(model) or more.result == plan.result


def test_latency_tables_leave_lists_alone() -> None:
    model = net(Dense)
    units = fk.trace(model, X)
    table = fk.latency_table(model, units, X, shares=(1.0, 0.5))
    scores = fk.score(model, batches(), F.cross_entropy, units=units, progress=False)
    assert scores.plan(tod=0.5, latency=table).result["latency_after_ms"] > 0
    group = experts_of(units)[0]
    none = [np.zeros(0, dtype=np.int64)] * len(units.groups)
    removed = np.array([2 if g == group else 0 for g in range(len(units.groups))])
    cost = latency_cost(units, table)
    router = table.layers["layers.0.router"]
    shrinks = sum(ms for what, ms in router.items() if what != "fixed")
    assert 0 <= cost(np.zeros_like(removed)) - cost(removed) <= shrinks + sum(table.rest.values())
    assert plan_of(units, none).result["params_after"] == size(model)
