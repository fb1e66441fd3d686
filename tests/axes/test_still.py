"""Activations that no input changes (a position bias made by a small network): no sample tells their units apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.axes.harness import Net, unit_map

X, Y = torch.randn(12, 5, 4), torch.arange(12) % 3


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


def test_what_no_input_changes_stays_and_the_rest_is_scored() -> None:
    model = positioned()
    units = fk.trace(model, X[:2])
    assert [(units.groups[g].name, units.groups[g].units) for g in units.prunable] == [("bias.2", 8)]
    reasons = {str(f.axis): f.reason for f in units.frozen}
    assert reasons["bias.0.weight:0"] == "no input changes it, so that no sample scores it"
    scores = fk.score(model, [(X, Y)], F.cross_entropy, units=units, progress=False)
    small = fk.apply(model, scores.plan(keep_params=0.9))
    assert small.head.in_features < 8
    assert small.bias[2].out_features == small.head.in_features


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
