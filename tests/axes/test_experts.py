"""Fused experts: what a trace finds, and routers that do not let an expert go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from fairkern.types import Silence
from tests.experts import CHOSEN, EXPERTS, INNER, MIXTURES, Fused, Softmax, build, samples, the

LIMIT = 1e-9


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_their_inner_units_are_found(name: str) -> None:
    units = fk.trace(MIXTURES[name](), samples()[0])
    whole, inner = units.groups[the(units, "expert")], units.groups[the(units, "expert neuron")]
    assert (whole.units, whole.sets, whole.least, whole.frozen) == (EXPERTS, 1, CHOSEN, None)
    assert (inner.units, inner.sets, inner.least, inner.frozen) == (INNER, EXPERTS, 1, None)
    assert {str(a.axis) for a in whole.axes if a.silence is Silence.MINUS_INFINITY} <= {
        "router.weight:0",
        "router.gate.weight:0",
    }
    assert whole.name == "experts"
    assert inner.total == EXPERTS * INNER
    assert f"{EXPERTS} × {INNER}" in units.explain()


def test_no_expert_goes_where_all_are_needed() -> None:
    class Dense(Softmax):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight.new_tensor(0) + (x @ self.weight.T).softmax(-1).topk(EXPERTS).values, (
                (x @ self.weight.T).softmax(-1).topk(EXPERTS).indices
            )

    units = fk.trace(build(router=Dense), samples()[0])
    assert units.groups[the(units, "expert")].frozen == "all of them are needed: 4 a token"
    assert units.groups[the(units, "expert neuron")].frozen is None


class Squashed(Softmax):
    """tanh turns a logit of −inf into −1: silencing is not removing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = torch.tanh(x @ self.weight.T).softmax(-1).topk(CHOSEN, dim=-1)
        return weights, index


class Normed(Softmax):
    """The mean of the logits changes with an expert that goes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ self.weight.T
        weights, index = (logits - logits.mean(-1, keepdim=True)).sigmoid().topk(CHOSEN, dim=-1)
        return weights, index


class Sorted(Softmax):
    """Experts chosen by a sort."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = (x @ self.weight.T).softmax(-1).sort(-1, descending=True)
        return weights[:, :CHOSEN], index[:, :CHOSEN]


class Grouped(Softmax):
    """Experts in two groups, of which the better one is used."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        best = scores.view(-1, 2, EXPERTS // 2).sum(-1).topk(1, dim=-1).indices
        mask = torch.zeros_like(scores.view(-1, 2, EXPERTS // 2)[..., 0]).scatter(1, best, 1.0)
        mask = mask.unsqueeze(-1).expand(-1, 2, EXPERTS // 2).reshape(-1, EXPERTS)
        weights, index = scores.masked_fill(mask == 0, 0.0).topk(CHOSEN, dim=-1)
        return weights, index


@pytest.mark.parametrize("router", [Squashed, Normed, Sorted, Grouped])
def test_routers_that_do_not_let_an_expert_go_freeze_experts_alone(router: type[Softmax]) -> None:
    model, x = build(router=router), samples()[0]
    units = fk.trace(model, x)
    whole = [g.frozen for g in units.groups if g.kind == "expert"]
    assert all(whole) if whole else any(f.axis.tensor == "router.weight" and f.axis.dim == 0 for f in units.frozen)
    assert units.groups[the(units, "expert neuron")].frozen is None
    plan = plan_of(units, random_removal(units, 0.7, seed=0))
    with fk.Plan(**vars(plan)).masked(model):
        assert difference(model, fk.apply(model, plan), x) < LIMIT


def test_experts_without_values_are_traced() -> None:
    """Routing depends on values, which the meta device has none of; the trace runs every expert on every token."""
    model, x = build(shared=True), samples()[0]
    expected = fk.trace(model, x, verify=False)
    found = fk.trace(build(shared=True).to("meta"), x.to("meta"), verify=False)
    assert found.explain() == expected.explain()


def test_a_vector_shared_by_the_experts_makes_one_set_of_their_inner_units() -> None:
    class Scaled(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(INNER) + 0.5)

        def _apply_gate(self, x: Tensor) -> Tensor:
            gate, up = x.chunk(2, dim=-1)
            return self.act_fn(gate) * up * self.scale

        def one(self, expert: int, x: Tensor) -> Tensor:
            return self._apply_gate(x @ self.gate_up_proj[expert].T) @ self.down_proj[expert].T

    model, (x, y) = build(Scaled), samples()
    units = fk.trace(model, x)
    (inner,) = [g for g in units.groups if any(a.axis.tensor == "experts.scale" for a in g.axes)]
    assert (inner.sets, inner.units, inner.frozen) == (1, INNER, None)
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, progress=False)
    small = fk.apply(model, plan := scores.plan(keep_params=0.8))
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT
