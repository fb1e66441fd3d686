"""Routers that choose groups of experts first: every group loses as many experts, and not the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build as plan_of
from fairkern.plans.compose import compose
from fairkern.plans.removals import about_half, random_removal
from fairkern.prove import difference
from fairkern.types import Silence
from tests.experts import samples, the
from tests.grouped import CHOSEN, EXPERTS, GROUPS, ROUTERS, Limited, defined, grouped

LIMIT = 1e-9
SIZE = EXPERTS // GROUPS

every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
both = pytest.mark.parametrize("held", ["fused", "listed"])


def only(units: fk.UnitMap, removed: np.ndarray) -> fk.Plan:
    """The plan that removes these experts, [groups, count], and nothing else."""
    g, nothing = the(units, "expert"), np.zeros(0, dtype=np.int64)
    return fk.Plan.of(plan_of(units, [removed if i == g else nothing for i in range(len(units.groups))]))


@both
@every_router
def test_a_cut_model_chooses_as_the_definition_does(router: type[Limited], held: str) -> None:
    model, x = grouped(router, held), samples()[0]
    assert torch.allclose(model(x), defined(model, x), atol=1e-12)
    units = fk.trace(model, x)
    whole = units.groups[the(units, "expert")]
    assert (whole.units, whole.sets, whole.least, whole.frozen) == (SIZE, GROUPS, 2, None)
    assert {str(a.axis) for a in whole.axes if a.silence is Silence.MINUS_INFINITY} == {"router.weight:0"}
    assert "router.e_score_correction_bias:0" in {str(a.axis) for a in whole.axes}
    for seed in range(3):
        generator = np.random.default_rng(seed)
        removed = np.stack([np.sort(generator.permutation(SIZE)[: 1 + seed % 2]) for _ in range(GROUPS)])
        plan = only(units, removed)
        gone = (removed + np.arange(GROUPS)[:, None] * SIZE).reshape(-1).tolist()
        small = fk.apply(model, plan)
        assert small.router.n_routed_experts == EXPERTS - len(gone)
        assert len(small.router.e_score_correction_bias) == EXPERTS - len(gone)
        expected = defined(model, x, gone)
        assert torch.allclose(small(x), expected, atol=1e-12)
        with plan.masked(model):
            assert torch.allclose(model(x), expected, atol=1e-12)


@both
def test_all_kinds_go_together_and_plans_are_files(held: str, tmp_path: Path) -> None:
    model, (x, y) = grouped(held=held), samples()
    units = fk.trace(model, x)
    plan = fk.Plan.of(plan_of(units, random_removal(units, 0.5, seed=3)))
    small = fk.apply(model, plan)
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT
    plan.save(tmp_path / "plan.json")
    again = fk.Plan.load(tmp_path / "plan.json")
    assert torch.equal(fk.apply(model, again)(x), small(x))
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, gram=True, progress=False)
    scores.save(tmp_path / "scores.safetensors")
    plan = fk.Scores.load(tmp_path / "scores.safetensors").plan(keep_params=0.7)
    assert [g.removed.tolist() for g in plan.groups] == [
        g.removed.tolist() for g in scores.plan(keep_params=0.7).groups
    ]
    small = fk.apply(model, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]
    with plan.masked(model):
        assert difference(model, small, x) < LIMIT


@both
def test_scores_order_the_experts_of_each_group(held: str) -> None:
    model, (x, y) = grouped(held=held), samples()
    units = fk.trace(model, x)
    scores = fk.score(model, [(x, y)], nn.CrossEntropyLoss(), units=units, gram=True, progress=False)
    g = the(units, "expert")
    for signal in ("taylor", "residual"):
        assert scores.signals[signal][g].shape == (EXPERTS,)
        plan = scores.plan(keep_params=0.6, removal=signal, allocation="uniform")
        rows = scores.signals[signal][g].reshape(GROUPS, SIZE)
        removed = next(p.removed for p in plan.groups if p.kind == "expert")
        assert 0 < removed.shape[1] <= SIZE - 2
        assert removed.tolist() == np.sort(rows.argsort(1)[:, : removed.shape[1]], axis=1).tolist()


def test_a_number_of_experts_is_dropped_in_all() -> None:
    model, x = grouped(), samples()[0]
    units = fk.trace(model, x)
    plan = units.plan(drop={"expert": GROUPS})
    assert [p.removed.shape for p in plan.groups if p.removed.size] == [(GROUPS, 1)]
    with pytest.raises(fk.BudgetError, match=f"6 of the {EXPERTS} experts of experts cannot go: .*can be 8, 4$"):
        units.plan(drop={"expert": 6})


def test_steps_add_up() -> None:
    model, x = grouped(), samples()[0]
    units = fk.trace(model, x)
    first = plan_of(units, random_removal(units, 0.3, seed=1))
    smaller = fk.apply(model, first)
    then = fk.trace(smaller, x)
    assert then.groups[the(then, "expert")].units == SIZE - 1
    second = plan_of(then, random_removal(then, 0.3, seed=2))
    both_steps = compose(units, [first, second])
    assert torch.equal(fk.apply(model, both_steps)(x), fk.apply(smaller, second)(x))


def test_the_groups_must_hold_enough() -> None:
    """With one group chosen, each has to hold all that a token is sent to."""

    class One(Limited):
        def __init__(self) -> None:
            super().__init__()
            self.topk_group = 1

    units = fk.trace(grouped(One), samples()[0])
    assert units.groups[the(units, "expert")].least == CHOSEN

    class All(One):
        def __init__(self) -> None:
            super().__init__()
            self.top_k = SIZE

    units = fk.trace(grouped(All), samples()[0])
    assert units.groups[the(units, "expert")].frozen == f"all of them are needed: {SIZE} in each group"


class ByNumber(Limited):
    """The choice depends on an expert's number, which changes where others go."""

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        return scores, scores + 0.1 * torch.arange(scores.shape[-1], dtype=x.dtype).sin()


class FixedGroups(Limited):
    """Which group an expert is in comes from a fixed size."""

    def mask(self, choice: Tensor) -> Tensor:
        groups = self.of_groups(choice)
        chosen = groups >= groups.topk(self.topk_group, dim=-1).values[:, -1:]
        return chosen[:, torch.arange(choice.shape[-1]).div(SIZE, rounding_mode="floor")]


class Averaged(Limited):
    """The mean over a group changes with an expert that goes."""

    def of_groups(self, choice: Tensor) -> Tensor:
        return choice.view(-1, self.n_group, self.n_routed_experts // self.n_group).mean(-1)


@both
@pytest.mark.parametrize("router", [ByNumber, FixedGroups, Averaged])
def test_what_groups_do_not_bear_keeps_experts(router: type[Limited], held: str) -> None:
    model, x = grouped(router, held), samples()[0]
    units = fk.trace(model, x)
    assert not [g for g in units.prunable if units.groups[g].kind == "expert"]
    plan = fk.Plan.of(plan_of(units, random_removal(units, 0.5, seed=0)))
    with plan.masked(model):
        assert difference(model, fk.apply(model, plan), x) < LIMIT


class Watched(Limited):
    """Writes down whom it chose, and a bias that chooses starts at zero as in a fresh model."""

    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.e_score_correction_bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = super().forward(x)
        if x.dtype == torch.float64:
            Watched.seen.append(index)
        return weights, index


def test_the_proof_routes_to_many_experts() -> None:
    """Pruned and masked copies send their tokens to all experts that are left, in many groups: nothing is hidden."""
    Watched.seen = []
    model, x = grouped(Watched).float(), samples(6)[0].float()
    units = fk.trace(model, x)
    half = about_half(units, seed=0)[the(units, "expert")]
    left = EXPERTS - half.size
    ran = [index for index in Watched.seen if int(index.max()) < left]
    assert ran
    chosen = torch.cat(ran)
    assert len(chosen.unique()) > left // 2
    assert len((chosen // (left // GROUPS)).unique()) == GROUPS
