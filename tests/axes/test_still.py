"""Activations that no input changes (a position bias made by a small network): no sample tells their units apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.errors import InputError
from fairkern.plans.build import build
from fairkern.prove.inputs import distance
from fairkern.types import AxisGroup
from tests.axes.harness import Net, unit_map

X, Y = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def positions(m: Net, x: Tensor) -> Tensor:
    bias = m.bias(m.places)  # [5, 8]
    return m.head((m.up(x) + bias).relu().mean(1))


def positioned() -> Net:
    torch.manual_seed(0)
    model = Net(
        positions,
        bias=nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 8)),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 3),
    ).eval()
    model.register_buffer("places", torch.linspace(-1, 1, 5)[:, None])
    return model


def decoder(m: Net, x: Tensor) -> Tensor:
    """As DETR's: learned queries over a stream that starts from zeros attend to each other before they read."""
    query = m.query.expand(len(x), -1, -1)
    stream = torch.zeros_like(query)
    parts = (m.q(stream + query), m.k(stream + query), m.v(stream))
    q, k, v = (t.view(len(x), -1, 4, 2).transpose(1, 2) for t in parts)
    stream = stream + m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return m.head((m.norm(stream + query) + m.up(x).mean(1, keepdim=True)).relu().mean(1))


def queries() -> Net:
    torch.manual_seed(0)
    linear = {name: nn.Linear(8, 8) for name in "qkvo"}
    model = Net(decoder, **linear, norm=nn.LayerNorm(8), up=nn.Linear(4, 8), head=nn.Linear(8, 3)).eval()
    model.query = nn.Parameter(torch.randn(6, 8))
    return model


@pytest.mark.parametrize(("build_model", "name", "count"), [(positioned, "bias.0", 16), (queries, "q", 4)])
def test_what_no_input_changes_is_cut_exactly(build_model: Callable[[], Net], name: str, count: int) -> None:
    model, x = build_model().double(), X.double()
    units = fk.trace(model, x[:2])
    (g,) = (i for i in units.prunable if i not in units.scored)
    assert (units.groups[g].name, units.groups[g].units, units.groups[g].taps) == (name, count, ())
    removed = [np.arange(group.units // 2) if i == g else np.arange(0) for i, group in enumerate(units.groups)]
    plan = fk.results.Plan.of(build(units, removed))
    small = fk.apply(model, plan)
    with torch.no_grad(), plan.masked(model):
        masked = model(x)
    assert distance(masked, small(x)) < 1e-9 < distance(model(x), masked)
    assert sum(p.numel() for p in small.parameters()) == plan.result["params_after"]


def test_plans_by_scores_leave_it_alone_and_say_so(tmp_path: Path) -> None:
    model, loader = positioned(), [(X, Y)]
    units = fk.trace(model, X[:2])
    said = "no input changes what is in bias.0: no sample scores it, and plans that go by what was measured leave it"
    assert said in " ".join(units.explain().split())
    scores = fk.score(model, loader, F.cross_entropy, units=units, progress=False, gram=True)
    scores.save(tmp_path / "scores.safetensors")
    scores = fk.Scores.load(tmp_path / "scores.safetensors")
    assert sorted(scores.signals) == ["activation", "l1", "l2", "residual", "taylor", "wasserstein"]
    assert all([len(values) for values in found] == [0, 8] for found in scores.signals.values())
    for asked in ({}, {"allocation": "tod"}, {"allocation": "uniform", "removal": "taylor"}):
        plan = scores.plan(keep_params=0.9, **asked)
        assert [group.removed.size > 0 for group in plan.groups] == [False, True]
        for how in ("mean", "least_squares", "sequential"):
            small = fk.apply(model, plan, compensate=how, scores=scores, loader=loader)
            assert small.head.in_features == small.bias[2].out_features < 8
    fk.picture(scores, scores.plan(keep_params=0.9, allocation="tod"), tmp_path / "plan.png")
    small, report = fk.prune(model, loader, F.cross_entropy, keep_params=0.8, iterations=2, progress=False)
    assert small.bias[0].out_features == 16
    assert any("no input changes what is in bias.0" in note for note in report.choices["notes"])


def test_what_asks_no_sample_may_take_it() -> None:
    model = positioned()
    units = fk.trace(model, X[:2])
    scores = fk.score(model, [(X, Y)], F.cross_entropy, units=units, progress=False)

    def size(group: AxisGroup) -> list[float]:
        return model.get_submodule(group.name).weight.abs().sum(1).tolist()

    for plan in (scores.plan(keep_params=0.6, allocation="uniform", removal=size), units.plan(keep_params=0.6)):
        assert [group.removed.size > 0 for group in plan.groups] == [True, True]
        small = fk.apply(model, plan, compensate="mean", scores=scores)
        assert small.bias[0].out_features < 16


def test_where_no_input_changes_anything_that_can_go_there_is_nothing_to_score() -> None:
    model = queries()
    with pytest.raises(InputError, match="no input changes any of the groups"):
        fk.score(model, [(X, Y)], F.cross_entropy, units=fk.trace(model, X[:2]), progress=False)


def latent(m: Net, x: Tensor) -> Tensor:
    stream = m.embed(x) + m.query  # what inputs change and what none changes meet
    return m.head(m.mix(stream).relu().mean(1)) + m.side(m.query.tanh())


def test_a_unit_is_heard_where_inputs_change_it() -> None:
    torch.manual_seed(0)
    model = Net(latent, embed=nn.Linear(4, 8), mix=nn.Linear(8, 6), head=nn.Linear(6, 3), side=nn.Linear(8, 3)).eval()
    model.query = nn.Parameter(torch.randn(8))
    units = unit_map(model, [X[:2]])
    group = next(g for g in units.groups if g.name == "embed")
    assert [tap.name for tap in group.taps] == ["mix:input"]
    assert {str(a.axis) for a in group.axes if a.consumer} == {"mix.weight:1", "side.weight:1"}
    fk.score(model, [(X, Y)], F.cross_entropy, units=fk.trace(model, X[:2]), progress=False, gram=True)


@pytest.mark.parametrize("write", ["copy", "add", "rows", "padded"])
def test_a_constant_that_an_input_is_written_to_is_none(write: str) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        held = torch.zeros(len(x), 4)
        if write == "rows":
            held[0] = x[0]
        elif write == "padded":
            held = torch.nn.utils.rnn.pad_sequence([x, x[:1]], batch_first=True)
        else:
            held = held.copy_(x) if write == "copy" else held.add_(x)
        return m.b(m.a(held).relu())

    units = unit_map(Net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), [X[:2, 0]])
    assert [(g.name, g.frozen) for g in units.groups] == [("a", None)]
