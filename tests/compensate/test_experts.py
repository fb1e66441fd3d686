"""What is made up for in fused experts: inner units of each, and the stream that all of them read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from tests.experts import EXPERTS, INNER, Fused, Listed, build, nothing, samples, the


def test_least_squares_repairs_inner_units_of_each_expert() -> None:
    """Where one unit of every expert is another one doubled, the fit finds it and nothing is lost."""
    model, (x, y) = build(shared=True), samples()
    with torch.no_grad():
        for e, (a, b) in enumerate(((0, 1), (2, 4), (3, 0), (1, 2))):
            up = model.experts.gate_up_proj[e]
            up[b], up[INNER + b] = up[a], 2 * up[INNER + a]
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = nothing(scores.units)
    removed[the(scores.units, "expert neuron")] = np.array([[1], [4], [0], [2]])
    plan = plan_of(scores.units, removed)
    gap = {
        method: difference(model, fk.apply(model, plan, compensate=method, scores=scores), x)
        for method in ("none", "mean", "least_squares")
    }
    assert gap["none"] == gap["mean"] > 1e-2
    assert gap["least_squares"] < gap["none"] / 20, "what is left is the ridge"
    removed[the(scores.units, "expert")] = np.array([2])
    small = fk.apply(model, plan_of(scores.units, removed), compensate="least_squares", scores=scores)
    whole = nothing(scores.units)
    whole[the(scores.units, "expert")] = np.array([2])
    with fk.Plan(**vars(plan_of(scores.units, whole))).masked(model):
        assert difference(model, small, x) < gap["none"] / 20
    pruned, report = fk.prune(model, [(x, y)], nn.CrossEntropyLoss(), keep_params=0.7, progress=False)
    assert report.plan is not None
    assert report.plan.result["params_after"] <= 0.7 * report.before["params"]
    added = report.choices["added_biases"]  # which no plan counts
    assert (
        report.after["params"]
        == report.plan.result["params_after"] + added
        == sum(map(torch.numel, pruned.parameters()))
    )
    assert len(pruned.experts.down_proj) == pruned.experts.num_experts
    assert {row["kind"]: row["units"] for row in report.groups}["expert neuron"] == EXPERTS * INNER


@pytest.mark.parametrize("experts", [Fused, Listed])
def test_sequential_compensation_leaves_experts_their_own_fit(experts: type[nn.Module]) -> None:
    model, (x, y) = build(experts, shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = random_removal(scores.units, 0.4, seed=2)
    plan = plan_of(scores.units, removed)
    options = {"scores": scores, "loader": [(x, y)]}
    small = fk.apply(model, plan, compensate="sequential", **options)
    once = fk.apply(model, plan, compensate="least_squares", scores=scores)
    for name, tensor in once.experts.named_parameters():
        torch.testing.assert_close(small.experts.get_parameter(name), tensor, msg=name)
    assert torch.isfinite(small(x)).all()
    untouched = build(experts, shared=True).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("experts", [Fused, Listed])
def test_what_follows_experts_is_refitted_to_what_they_give_with_their_own_fit(experts: type[nn.Module]) -> None:
    model, (x, y) = build(experts, shared=True), samples()
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    plan = plan_of(scores.units, random_removal(scores.units, 0.4, seed=0))
    once = fk.apply(model, plan, compensate="least_squares", scores=scores)
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=[(x, y)])
    assert difference(model, small, x) < difference(model, once, x)


def test_a_residual_stream_that_experts_read_can_be_compensated() -> None:
    model, (x, y) = build(norm=False, shared=True), samples()
    with torch.no_grad():
        model.embed.weight[4], model.embed.bias[4] = model.embed.weight[1] * 2, model.embed.bias[1] * 2
        model.experts.down_proj[:, 4], model.shared.down_proj.weight[4] = 0, 0
        model.experts.down_proj[:, 1], model.shared.down_proj.weight[1] = 0, 0
        model.head.weight[:, 4] = 0  # what it reads went through tanh
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), gram=True, progress=False)
    removed = random_removal(scores.units, 0.3, seed=0)
    (g,) = [i for i, group in enumerate(scores.units.groups) if group.name == "embed"]
    removed[g] = np.array([4])
    plan = plan_of(scores.units, removed)
    removed[g] = np.zeros(0, dtype=np.int64)
    rest = fk.Plan(**vars(plan_of(scores.units, removed)))
    repaired = fk.apply(model, plan, compensate="least_squares", scores=scores)
    expected = fk.apply(model, rest, compensate="least_squares", scores=scores)
    assert difference(expected, repaired, x) < difference(expected, fk.apply(model, plan), x) / 20
