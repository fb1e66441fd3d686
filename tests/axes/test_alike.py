"""Layers that one filled or expanded tensor meets: its one length is that of all of them, so they are cut alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.axes.dims import Uniform
from fairkern.axes.graph import Graph
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from tests.axes.harness import Case, Net, check_exact, lines, make, unit_map

HEADS, SIZE = 4, 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = HEADS
        self.q, self.k, self.v = (nn.Linear(8, HEADS * SIZE) for _ in range(3))
        self.o = nn.Linear(HEADS * SIZE, 8)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = (p(x).unflatten(-1, (self.n, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        if bias is None:  # made in the first layer and handed on, as T5 does for what its decoder reads
            bias = torch.zeros(1, self.n, x.shape[1], x.shape[1], dtype=x.dtype)
            bias = bias + torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).triu(1) * -9
        made = (q @ k.mT + bias).softmax(-1) @ v
        return self.o(made.transpose(1, 2).flatten(2)), bias


def handed_on(m: Net, x: Tensor) -> Tensor:
    bias = None
    for layer in m.layers:
        made, bias = layer(x, bias)
        x = x + made.relu()
    return x


def expanded(m: Net, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).triu(1) * -9
    mask = mask.expand(len(x), m.layers[0].n, -1, -1)
    for layer in m.layers:
        x = x + layer(x, mask)[0].relu()
    return x


def folded(m: Net, x: Tensor) -> Tensor:
    """The mask's heads lie in the batch."""
    n = m.layers[0].n
    mask = x[:, None, :, :1].tanh().expand(-1, n, -1, x.shape[1]).flatten(0, 1)
    for layer in m.layers:
        x = x + layer(x, mask.unflatten(0, (len(x), n)))[0].relu()
    return x


def each_its_own(m: Net, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).triu(1) * -9
    for layer in m.layers:
        x = x + layer(x, mask.expand(len(x), layer.n, -1, -1))[0].relu()
    return x


def state(m: Net, x: Tensor) -> Tensor:
    """One first state of zeros for two cells."""
    zero = torch.zeros(len(x), 6, dtype=x.dtype)
    return m.out(m.a(x, zero) + 0.5).square() + m.last(m.b(x, zero).relu())


def net(run: object, layers: int = 4) -> Net:
    return Net(run, layers=nn.ModuleList(Attention() for _ in range(layers)))


@pytest.mark.parametrize("run", [handed_on, expanded, folded], ids=lambda run: run.__name__)
def test_heads_of_layers_that_share_a_mask_are_one_group(run: object) -> None:
    case = Case(lambda: net(run), shape=(2, 5, 8))
    model, inputs = make(case)
    for units in (fk.trace(model, inputs[0], verify=False), fk.trace(model, inputs[0])):
        (group,) = units.groups
        assert (group.kind, group.frozen) == ("head", None)
        assert len(group.axes) == 4 * 7  # weights and biases that make heads, a weight that reads them
    check_exact(case)


def repeated(m: Net, x: Tensor) -> Tensor:
    """The number of heads is nobody's attribute, and no other number of this module follows them."""
    mask = 1 - x[:, None, :, :1].tanh().repeat(1, HEADS, 1, x.shape[1])
    for layer in m.layers:
        x = x + layer(x, mask)[0].relu()
    return x


def literal(m: Net, x: Tensor) -> Tensor:
    mask = x[:, None, :, :1].tanh().expand(-1, HEADS, -1, x.shape[1])
    for layer in m.layers:
        x = x + layer(x, mask + 1)[0].relu()
    return x


@pytest.mark.parametrize("run", [repeated, literal], ids=lambda run: run.__name__)
def test_a_number_that_fills_a_dimension_follows_what_that_meets(run: object) -> None:
    model, inputs = make(Case(lambda: net(run, 2), shape=(2, 5, 8)))
    units = fk.trace(model, inputs[0])
    (group,) = units.groups
    assert (group.kind, group.frozen) == ("head", None)
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, seed=1))))
    with plan.masked(model):
        assert difference(model, fk.apply(model, plan), inputs[0]) < 1e-9


def test_layers_with_a_mask_of_their_own_are_not() -> None:
    case = Case(lambda: net(each_its_own), shape=(2, 5, 8))
    model, inputs = make(case)
    units = fk.trace(model, inputs[0])
    assert [(g.units, g.frozen) for g in units.groups] == [(HEADS, None)] * 4
    check_exact(case)


def test_cells_that_share_a_first_state() -> None:
    parts = {"out": nn.Linear(6, 3), "last": nn.Linear(6, 3)}
    model = Net(state, a=nn.GRUCell(4, 6), b=nn.GRUCell(4, 6), **parts).double().eval()
    said = lines(unit_map(model, [torch.randn(2, 4).double()]))
    assert len(said) == 1
    assert {"a.weight_hh", "b.weight_hh"} <= set(str(said).replace(":", " ").split())


def test_lengths_that_met_are_one() -> None:
    graph = Graph()
    a, b, c = (graph.new(4) for _ in range(3))
    first, second, other = Uniform(), Uniform(zero=True), Uniform()
    graph.meet(a, first, "")
    graph.meet(second, b, "")
    graph.meet(c, other, "")
    assert not graph.edges
    assert graph.meet(first, second, "") is first
    assert [(e.a.tolist(), e.b.tolist()) for e in graph.edges] == [(a.tolist(), b.tolist())]
    graph.meet(second.filled, c, "")
    assert len(graph.edges) == 2
    graph.meet(first.another, graph.new(4), "")
    assert len(graph.edges) == 2
