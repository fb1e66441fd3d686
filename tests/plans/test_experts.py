"""Plans of whole experts and of their inner units: costs, what must stay, steps that become one plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from tests import listed
from tests.axes.harness import measured_flops
from tests.experts import CHOSEN, EXPERTS, MIXTURES, build, nothing, samples, the


@pytest.mark.parametrize("name", MIXTURES)
def test_costs_are_those_of_the_experts_that_a_token_is_sent_to(name: str) -> None:
    model, x = MIXTURES[name](), samples()[0]
    units = fk.trace(model, x, verify=False)
    plan = plan_of(units, random_removal(units, 0.5, seed=1))
    for net, when in ((model, "before"), (fk.apply(model, plan), "after")):
        assert plan.result[f"flops_{when}"] == measured_flops(net, x)
        assert plan.result[f"params_{when}"] == sum(p.numel() for p in net.parameters())


def test_as_many_experts_stay_as_a_token_is_sent_to() -> None:
    model, x = build(), samples()[0]
    units = fk.trace(model, x)
    g = the(units, "expert")
    removed = nothing(units)
    removed[g] = np.arange(EXPERTS - CHOSEN)
    small = fk.apply(model, plan_of(units, removed))
    assert len(small.experts.down_proj) == CHOSEN
    removed[g] = np.arange(EXPERTS - CHOSEN + 1)
    with pytest.raises(fk.InputError, match=r"3 of the 4 units .* at least 2 must stay"):
        plan_of(units, removed)


@listed.every_mixture
def test_steps_compose_to_one_plan(mixture: type[nn.Module]) -> None:
    model = listed.net(mixture, sizes=listed.UNEVEN)
    small, report = fk.prune(
        model, listed.batches(), F.cross_entropy, keep_params=0.4, iterations=3, compensate="none", progress=False,
        removal="wasserstein", allocation="uniform",
    )  # fmt: skip
    assert report.plan is not None
    assert sum(len(g.removed) for g in report.plan.groups if g.kind == "expert")
    again = fk.apply(model, report.plan)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    torch.testing.assert_close(again(listed.X), small(listed.X), rtol=0, atol=0)
