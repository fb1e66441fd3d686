"""Whole experts that are modules of a list: found, scored, cut, masked, made up for, saved and taken out in steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from bench.zoo.mixtures import MIXTURES, Compared, Dense, Likeliest, Mixture, Net, OneHot
from fairkern import allocate, compact
from fairkern.allocate.latency import latency_cost
from fairkern.entries import Renaming

X = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0))
UNEVEN = (6, 4, 8, 5, 7)


def net(mixture: type[nn.Module], seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(mixture, **options).eval()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 7, 5, generator=generator), torch.arange(16) % 3) for _ in range(count)
    ]  # fmt: skip


def experts_of(units: fk.UnitMap) -> list[int]:
    return [g for g in units.prunable if units.groups[g].kind == "expert"]


def removals(units: fk.UnitMap, seed: int) -> Iterator[list[np.ndarray]]:
    """Shares of every group, and one unit of each alone."""
    nothing = [np.zeros(0, dtype=np.int64)] * len(units.groups)
    for share in (0.3, 0.7):
        yield allocate.random_removal(units, share, seed)
    for g in units.prunable:
        yield [np.array([units.groups[g].units - 1]) if i == g else none for i, none in enumerate(nothing)]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request: pytest.FixtureRequest) -> type[nn.Module]:
    return MIXTURES[request.param]


def test_experts_are_found(mixture: type[nn.Module]) -> None:
    units = fk.trace(net(mixture), X)
    found = [units.groups[g] for g in experts_of(units)]
    assert [group.name for group in found] == ["layers.0.experts", "layers.1.experts"]
    assert all(group.units == 4 and group.least == (1 if mixture is Likeliest else 2) for group in found)
    assert all(sum(a.routes for a in group.axes) == 1 for group in found)
    assert "expert" in units.explain()


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), UNEVEN], ids=["alike", "uneven"])
def test_cut_is_masked(mixture: type[nn.Module], sizes: tuple[int, ...]) -> None:
    model = net(mixture, sizes=sizes).double()
    units = fk.trace(model, X.double())
    assert len(experts_of(units)) == 2
    x = torch.randn(20, 7, 5, dtype=torch.float64)
    for removed in removals(units, seed=3):
        plan = fk.Plan(**vars(allocate.build(units, removed)))
        small = fk.apply(model, plan)
        with plan.masked(model):
            masked = model(x)
        assert compact.difference(small, small, x) == 0
        assert (masked - small(x)).abs().max().item() < 1e-9 * masked.abs().max().item()
        assert size(small) == plan.result["params_after"], "experts of unequal size count as what they are"
        for layer, kept in zip(small.layers, model.layers, strict=True):
            gone = {g.name: len(g.removed) for g in plan.groups if g.kind == "expert"}
            assert len(layer.experts) <= len(kept.experts)
        assert sum(len(layer.experts) for layer in small.layers) == 2 * len(sizes) - sum(gone.values())


def test_cut_in_place_frees_experts_and_keeps_parameters(mixture: type[nn.Module]) -> None:
    model = net(mixture, sizes=UNEVEN)
    units = fk.trace(model, X)
    plan = fk.Plan(**vars(allocate.build(units, allocate.random_removal(units, 0.5, 0))))
    expected = fk.apply(model, plan)
    before = {id(p) for p in model.parameters()}
    assert fk.apply(model, plan, inplace=True) is model
    assert {id(p) for p in model.parameters()} < before
    torch.testing.assert_close(model(X), expected(X), rtol=0, atol=0)


def test_ways_of_writing_it_give_the_same_scores() -> None:
    """What an expert adds to its tokens: of tokens that are looked up, and with weights of zero for all others."""
    models = [net(kind, sizes=UNEVEN) for kind in (Dense, OneHot, Compared)]
    for other in models[1:]:
        other.load_state_dict(models[0].state_dict())
    found = []
    for model in models:
        model.double()
        data = [(x.double(), y) for x, y in batches()]
        units = fk.trace(model, X.double())
        scores = fk.score(model, data, F.cross_entropy, units=units, gram=True, progress=False)
        found.append([scores.signals[s][g] for s in ("wasserstein", "taylor") for g in experts_of(units)])
        power = [scores.moments[f"layers.0.experts:expert[{e}]"].gram.sum() for e in range(5)]
        assert all(p > 0 for p in power)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_taylor_is_what_the_loss_loses_with_an_experts_output() -> None:
    """Σ over samples of |Σ gate · output · ∂L/∂(gate · output)|, against a gate that is scaled."""
    model = net(Dense).double()
    x, y = batches(1)[0]
    x = x.double()
    units = fk.trace(model, X.double())
    scores = fk.score(model, [(x, y)], F.cross_entropy, units=units, progress=False)
    layer = model.layers[1]
    scale = torch.ones(16, 4, dtype=torch.float64, requires_grad=True)
    hooks = [
        expert.register_forward_hook(lambda m, a, out, e=e: out * scale[:, e, None, None])
        for e, expert in enumerate(layer.experts)
    ]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), scale)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(scores.signals["taylor"][experts_of(units)[1]], gradient.abs().mean(0), rtol=1e-9)


def test_the_papers_recipe_hears_whole_experts() -> None:
    model = net(OneHot)
    units = fk.trace(model, X)
    default, paper = (
        fk.score(
            model, batches(), F.cross_entropy, units=units, gram=True, recipe=r, reduction="signed", progress=False
        )
        for r in ("default", "paper")
    )
    for g in experts_of(units):
        for name in ("wasserstein", "taylor", "residual"):
            np.testing.assert_array_equal(default.signals[name][g], paper.signals[name][g])


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
    for g in units.prunable:
        name = units.groups[g].name
        if not len(removed[name]):
            continue
        order = np.argsort(scores.signals["wasserstein"][g], kind="stable")[: len(removed[name])]
        fewer = [order[:-1] if i == g else removed.get(group.name, ()) for i, group in enumerate(units.groups)]
        more = allocate.build(units, [np.asarray(r, dtype=np.int64) for r in fewer])
        assert more.result["params_after"] > 0.55 * size(model) or more.result == plan.result


@pytest.mark.parametrize("compensate", ["mean", "least_squares", "sequential"])
def test_compensation_and_files(mixture: type[nn.Module], compensate: str, tmp_path: Any) -> None:
    model = net(mixture, sizes=UNEVEN)
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    plan = fk.Plan(**vars(allocate.build(units, allocate.random_removal(units, 0.5, 0))))
    small = fk.apply(model, plan, compensate=compensate, scores=scores, loader=batches())
    fk.save_pruned(small, plan, tmp_path / "small")
    with torch.device("meta"):
        fresh = Net(mixture, sizes=UNEVEN)
    if mixture.__name__ == "Sorted":  # a buffer that is saved, and made from random numbers
        fresh = Net(mixture, sizes=UNEVEN)
    again = fk.load_pruned(fresh, tmp_path / "small").eval()
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in small.named_parameters()]
    torch.testing.assert_close(again(X), small(X), rtol=0, atol=0)
    scores.save(tmp_path / "scores")
    loaded = fk.Scores.load(tmp_path / "scores")
    assert loaded.units.lists == units.lists
    assert loaded.units.extents == units.extents
    assert loaded.plan(keep_params=0.5).result == scores.plan(keep_params=0.5).result
    plan.save(tmp_path / "plan.json")
    assert fk.Plan.load(tmp_path / "plan.json").lists == plan.lists


def test_compensation_comes_closer(mixture: type[nn.Module]) -> None:
    """Experts that stay, renamed, are given what was fitted for them."""
    model = net(mixture, sizes=(16, 16, 16, 16), width=12)
    x = torch.cat([x for x, _ in batches()])
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    removed = [
        np.array([0]) if group.kind == "expert" else np.arange(4) if ".experts." in group.name else np.zeros(0, int)
        for group in units.groups
    ]
    plan = fk.Plan(**vars(allocate.build(units, removed)))
    with plan.masked(model):
        bare = model(x)
    # against the model without the experts, so that only what the inner units carried is made up for
    only = [r if g.kind == "expert" else np.zeros(0, int) for g, r in zip(units.groups, removed, strict=True)]
    whole = fk.apply(model, fk.Plan(**vars(allocate.build(units, only))))(x)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert (small(x) - whole).norm() < 0.8 * (bare - whole).norm()


def test_steps_compose_to_one_plan(mixture: type[nn.Module]) -> None:
    model = net(mixture, sizes=UNEVEN)
    small, report = fk.prune(
        model, batches(), F.cross_entropy, keep_params=0.4, iterations=3, compensate="none", progress=False,
        removal="wasserstein", allocation="uniform",
    )  # fmt: skip
    assert report.plan is not None
    assert sum(len(g.removed) for g in report.plan.groups if g.kind == "expert")
    again = fk.apply(model, report.plan)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    torch.testing.assert_close(again(X), small(X), rtol=0, atol=0)


def test_names_move_up_and_back() -> None:
    model = net(OneHot, sizes=UNEVEN)
    units = fk.trace(model, X)
    first = experts_of(units)[0]
    removed = [np.array([0, 3]) if g == first else np.zeros(0, int) for g in range(len(units.groups))]
    renaming = Renaming(allocate.build(units, removed))
    assert renaming.after("layers.0.experts.1.up.weight") == "layers.0.experts.0.up.weight"
    assert renaming.after("layers.0.experts.4") == "layers.0.experts.2"
    assert renaming.after("layers.0.experts.3.up.weight") is None
    assert renaming.after("layers.1.experts.3.up.weight") == "layers.1.experts.3.up.weight"
    assert renaming.after("layers.0.experts") == "layers.0.experts"
    assert renaming.before("layers.0.experts.2.down") == "layers.0.experts.4.down"
    assert renaming.before("head.weight") == "head.weight"


def test_experts_within_experts_are_named_from_outside_in() -> None:
    class Nested(Mixture):
        """Each expert is a mixture of its own."""

        def __init__(self, width: int = 8) -> None:
            super().__init__(width, (4, 4, 4))
            self.experts = nn.ModuleList(OneHot(width, (3, 4, 5, 6)) for _ in range(3))

        forward = OneHot.forward

    model = net(Nested, layers=1).double()
    units = fk.trace(model, X.double())
    names = [units.groups[g].name for g in experts_of(units)]
    assert names == ["layers.0.experts", *(f"layers.0.experts.{e}.experts" for e in range(3))]
    removed = [
        np.array([] if group.kind != "expert" else [0] if group.name == "layers.0.experts" else [1], dtype=np.int64)
        for group in units.groups
    ]
    plan = fk.Plan(**vars(allocate.build(units, removed)))
    small = fk.apply(model, plan)
    assert [len(e.experts) for e in small.layers[0].experts] == [3, 3]
    assert size(small) == plan.result["params_after"]
    assert Renaming(plan).after("layers.0.experts.2.experts.3.up.weight") == "layers.0.experts.1.experts.2.up.weight"
    assert Renaming(plan).before("layers.0.experts.1.experts.2.up") == "layers.0.experts.2.experts.3.up"
    with plan.masked(model):
        torch.testing.assert_close(model(X.double()), small(X.double()), rtol=1e-9, atol=1e-12)


class Averaged(Mixture):
    """The gates are held against their mean: an expert that is gone counts there."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        weights, index = logits.softmax(-1).topk(self.top_k, -1)
        weights = weights * logits.softmax(-1).std(-1, keepdim=True)
        onto = torch.zeros_like(logits).scatter(-1, index, weights)
        return torch.stack([e(x) * onto[..., i : i + 1] for i, e in enumerate(self.experts)]).sum(0)


class FixedNumber(Mixture):
    """There are four experts, whatever there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.chosen(x)
        onto = torch.zeros((*x.shape[:-1], 4)).to(x).scatter(-1, index, weights.to(x))
        return sum(self.experts[e](x) * onto[..., e : e + 1] for e in range(4))  # type: ignore[return-value]


class Twice(Mixture):
    """Its experts run two times."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = Dense.forward(self, x)  # type: ignore[arg-type]
        return x


class Shared(Dense):
    """Another list has the same experts."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.again = nn.ModuleList(self.experts)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.again[0](x)


class LogitsOut(nn.Module):
    """The router's logits are part of what the model returns."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mixture = Dense(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mixture(x), self.mixture.router(x)


@pytest.mark.parametrize("kind", [Averaged, FixedNumber, Twice, Shared], ids=lambda k: k.__name__)
def test_experts_that_cannot_go_stay(kind: type[nn.Module]) -> None:
    model = net(kind)
    units = fk.trace(model, X)
    assert not experts_of(units)
    routers = [f for f in units.frozen if f.axis.tensor == "layers.0.router.weight" and f.axis.dim == 0]
    reasons = [g.frozen for g in units.groups if g.kind == "expert"] + [f.reason for f in routers]
    assert reasons
    assert all(reasons)


def test_experts_whose_logits_are_returned_stay() -> None:
    torch.manual_seed(0)
    units = fk.trace(LogitsOut().eval(), torch.randn(6, 5, 8))
    assert not experts_of(units)
    reasons = {f.reason for f in units.frozen if f.axis.tensor == "mixture.router.weight" and f.axis.dim == 0}
    assert reasons == {"is a dimension of the model's output"}


def test_without_a_proof_they_stay() -> None:
    units = fk.trace(net(OneHot), X, verify=False)
    assert not units.lists
    assert not experts_of(units)


def test_a_plan_for_other_lists_is_refused() -> None:
    model, other = net(OneHot), net(OneHot, sizes=(6, 6, 6, 6, 6))
    units = fk.trace(model, X)
    plan = allocate.build(units, allocate.random_removal(units, 0.5, 0))
    with pytest.raises(fk.PlanMismatchError, match="layers"):
        fk.apply(other, plan)
    small = fk.apply(model, plan)
    with pytest.raises(fk.PlanMismatchError, match=r"pruned with it already|none"):
        fk.apply(small, plan)


def test_experts_without_a_token_are_silent() -> None:
    model = net(OneHot)
    with torch.no_grad():
        model.layers[0].router.weight[2:] = 0
        model.layers[0].router.weight[:2] *= 30
        model.embed.bias += 1
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    first = experts_of(units)[0]
    assert all(np.isfinite(scores.signals[name][first]).all() for name in scores.signals)


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
    assert allocate.build(units, none).result["params_after"] == size(model)
