"""Modules of a list that the inputs did not reach: taken for their siblings where that is certain, frozen elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern import compact, prove
from fairkern.axes.facts import Fact
from fairkern.axes.graph import Graph
from fairkern.axes.relocation import Relocation
from fairkern.axes.trace import trace
from fairkern.deadline import NO_LIMIT
from fairkern.plans.build import build as plan_of
from fairkern.plans.removals import random_removal
from tests.axes.harness import Net, lines, unit_map
from tests.experts import Listed, Mixture, build, samples


def narrow(model: Mixture, unreached: int = 1) -> Mixture:
    """A router that sends no token of `samples()` to one of its experts."""
    with torch.no_grad():
        model.router.weight[unreached] = 0
        model.router.weight[unreached, 0] = -100
        (model.norm.bias if isinstance(model.norm, nn.LayerNorm) else model.embed.bias)[0] = 10
        for expert in {0, 1, 2, 3} - {unreached}:
            model.router.weight[expert, 0] = 0
    return model


def wide(model: Mixture) -> Tensor:
    """Inputs that reach every expert of a narrow router."""
    x, _ = samples(12, seed=3)
    with torch.no_grad():
        direction = torch.linalg.lstsq(model.embed.weight.double(), torch.eye(6).double()[:1].T).solution[:, 0]
    return torch.cat([x, x - 40 * direction])


def reached(model: Mixture, x: Tensor) -> set[int]:
    found: set[int] = set()
    handles = [e.register_forward_pre_hook(lambda *_, k=k: found.add(k)) for k, e in enumerate(model.experts)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_an_expert_without_a_token_is_cut_like_its_siblings(shared: bool, fraction: float) -> None:
    model, (x, _) = narrow(build(Listed, norm=False, shared=shared)), samples()
    everywhere = wide(model)
    assert reached(model, everywhere) == {0, 1, 2, 3}
    assert reached(model, x) == {0, 2, 3}
    units = fk.trace(model, x)
    found, whole = lines(units), fk.trace(build(Listed, norm=False, shared=shared), x)
    assert {k: v.partition(" @ ")[0] for k, v in found.items()} == {
        k: v.partition(" @ ")[0] for k, v in lines(whole).items()
    }
    assert "experts.1 is not reached by the example inputs; traced like experts.0" in units.notes
    plan = plan_of(units, random_removal(units, fraction, seed=2))
    small = fk.apply(model, plan)
    with fk.Plan(**vars(plan)).masked(model):
        assert prove.difference(model, small, everywhere) < 1e-9


def test_several_experts_without_a_token_take_the_same_place() -> None:
    model, x = build(Listed, norm=False), samples()[0]
    with torch.no_grad():
        model.router.weight[1:3] = 0
        model.router.weight[::3] *= 0.1
        model.router.weight[::3, 0] = 5
        model.embed.bias[0] = 10
    assert reached(model, x) == {0, 3}
    units = fk.trace(model, x)
    assert [units.notes[k].partition(" ")[0] for k in range(2)] == ["experts.1", "experts.2"]
    inner = [g.units for g in units.groups if g.kind == "neuron" and g.name.startswith("experts.")]
    assert len(inner) == 4
    plan = plan_of(units, random_removal(units, 0.5, seed=2))
    small = fk.apply(model, plan)
    generator = torch.Generator().manual_seed(5)
    everywhere = 30 * torch.randn(40, *x.shape[1:], generator=generator, dtype=x.dtype)
    with torch.no_grad():
        model.embed.bias[0] = small.embed.bias[0] = 0
    assert reached(model, everywhere) == {0, 1, 2, 3}
    with fk.Plan(**vars(plan)).masked(model):
        assert prove.difference(model, small, everywhere) < 1e-9


class Viewed(nn.Module):
    """Splits its inner units into heads and weighs each head by its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.up(x)).unflatten(-1, (-1, 2))
        return self.down((x * x.mean(-1, keepdim=True)).flatten(-2) * self.scale)


class Some(nn.Module):
    """A list of which the first few run, each on places of the stream that are picked, and added to it."""

    def __init__(self, parts: list[nn.Module], runs: int) -> None:
        super().__init__()
        self.embed, self.parts, self.head = nn.Linear(4, 6), nn.ModuleList(parts), nn.Linear(6, 2)
        self.runs = runs

    def forward(self, x: Tensor, runs: int | None = None) -> Tensor:
        x = self.embed(x)
        for part in list(self.parts)[: runs or self.runs]:
            x = x + part(x[torch.arange(len(x))])
        return self.head(x)


def some(part: Callable[[], nn.Module], runs: int, last: Callable[[], nn.Module] | None = None) -> Some:
    torch.manual_seed(0)
    return Some([part(), part(), (last or part)()], runs).double().eval()


class Truncated(nn.Module):
    """A stack that ends early; a longer run takes more of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(4))

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.embed(x)
        for layer in self.layers[:depth]:
            x = x + layer(x)
        return self.head(x)


def test_layers_behind_the_end_of_a_stack_stay_and_the_rest_is_scored() -> None:
    torch.manual_seed(0)
    model, x, labels = Truncated().double().eval(), torch.randn(12, 4).double(), torch.arange(12) % 2
    units = fk.trace(model, x)
    assert {g.name for g in units.groups} == {"embed", "layers.0.0", "layers.1.0"}
    reasons = {str(f.axis): f.reason for f in units.frozen}
    assert "so that nothing scores it: more= takes" in reasons["layers.2.0.weight:0"]
    assert "so that nothing scores it" in reasons["layers.3.2.weight:1"]
    small, report = fk.prune(model, [(x, labels)], F.cross_entropy, keep_params=0.6, compensate="none", progress=False)
    assert report.plan is not None
    with report.plan.masked(model):
        assert prove.difference(model, small, (x, 4)) < 1e-9
    everywhere = fk.trace(model, x, more=[(x, 4)])
    assert {g.name for g in everywhere.groups} == {"embed", *(f"layers.{k}.0" for k in range(4))}


def test_views_inside_a_sibling_are_followed() -> None:
    model, x = some(Viewed, 2), torch.randn(5, 4, dtype=torch.float64)
    units = unit_map(model, [x])
    heads = [g for g in units.groups if g.name == "parts.2.up"]
    assert [(g.units, [a.positions.shape[1] for a in g.axes]) for g in heads] == [(4, [2, 2, 2, 2])]
    plan = plan_of(units, random_removal(units, 0.5, seed=1))
    small = compact.apply(model, plan)
    with compact.masked(model, plan):
        assert prove.difference(model, small, (x, 3)) < 1e-9


@dataclass(frozen=True)
class Visit(Fact):
    """A kind of fact that only this test knows."""

    module: str

    def moved(self, to: Relocation) -> Visit | None:
        return Visit(to.path(self.module)) if to.holds(self.module) else None


@dataclass
class WiderGraph(Graph):
    visits: list[Visit] = field(default_factory=lambda: [Visit("parts.0.up"), Visit("head")])


def test_a_further_kind_of_fact_moves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairkern.axes.trace.Graph", WiderGraph)
    graph = trace(some(Viewed, 2), [torch.randn(5, 4, dtype=torch.float64)], NO_LIMIT).graph
    assert isinstance(graph, WiderGraph)
    assert graph.visits == [Visit("parts.0.up"), Visit("head"), Visit("parts.2.up")]


REFUSED = {
    "one sibling says too little": lambda: some(Viewed, 1),
    "another class": lambda: some(Viewed, 2, lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))),
    "other settings": lambda: some(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 6)),
        2,
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ELU(0.5), nn.Linear(8, 6)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_freezes_what_it_may_read(name: str) -> None:
    units = unit_map(REFUSED[name](), [torch.randn(5, 4, dtype=torch.float64)])
    assert not any("traced like" in note for note in units.notes)
    reasons = {str(f.axis): f.reason for f in units.frozen}
    assert "which the example inputs do not reach" in reasons["embed.weight:0"]


def stages(m: Net, x: Tensor) -> Tensor:
    """Each stage has a head of its own; that of the last runs for large images only."""
    out = 0
    for k in range(3):
        x = m.stages[k](x).relu()
        if k < 2 or x.shape[-1] > 8:
            out = out + m.heads[k](x.mean((2, 3)))
    return out + m.last(x.mean((2, 3)))


def test_heads_on_the_stages_of_a_network_are_no_siblings() -> None:
    torch.manual_seed(0)
    model = Net(
        stages,
        stages=nn.ModuleList(nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1) for k in range(3)),
        heads=nn.ModuleList(nn.Linear(8, 2) for _ in range(3)),
        last=nn.Linear(8, 2),
    ).double()
    units = unit_map(model, [torch.randn(2, 3, 8, 8, dtype=torch.float64)])
    assert not any("traced like" in note for note in units.notes)
    assert all("stages" not in g.name for g in units.groups), "the unreached head may read any of them"
    assert any("may be read by heads.2.weight" in f.reason for f in units.frozen)
    assert any("unused=['heads.2'] if none does" in note for note in units.notes)


class Folded(nn.Module):
    """Passes a size on that no attribute holds, and another that is right by itself once the module is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.widths = [8]

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.up(x)).reshape(-1, 1, self.widths[0])
        return self.down(x.reshape(x.shape[0], x.shape[2]))


def test_a_sibling_is_given_the_size_sites_of_the_others() -> None:
    model, x = some(Folded, 2), torch.randn(5, 4, dtype=torch.float64)
    units = fk.trace(model, x)
    group = next(g for g in units.groups if g.name == "parts.2.up")
    assert group.frozen is None
    assert {(s.module, s.call) for s in units.sites} == {(f"parts.{i}", None) for i in range(3)}
    plan = plan_of(units, random_removal(units, 0.5, seed=1))
    small = fk.apply(model, plan)
    with fk.Plan(**vars(plan)).masked(model):
        assert prove.difference(model, small, (x, 3)) < 1e-9
