"""Graph networks: what is summed, averaged or compared over the edges of a node leaves channels alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.removals import random_removal
from tests.axes.harness import Case, Net, assert_exact, check_exact, check_groups

NODES, EDGES = 10, 30


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(NODES, 5, generator=generator), torch.randint(0, NODES, (2, EDGES), generator=generator)


def wide(index: Tensor, messages: Tensor) -> Tensor:
    """An index of edges, as wide as what they carry."""
    return index.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)


def added(messages: Tensor, index: Tensor) -> Tensor:
    return messages.new_zeros(NODES, *messages.shape[1:]).scatter_add_(0, wide(index, messages), messages)


def added_anew(messages: Tensor, index: Tensor) -> Tensor:
    return torch.zeros(NODES, messages.shape[1]).to(messages).scatter_add(0, wide(index, messages), messages)


def reduced(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    def run(messages: Tensor, index: Tensor) -> Tensor:
        zeros = messages.new_zeros(NODES, messages.shape[1])
        return zeros.scatter_reduce_(0, wide(index, messages), messages, how, include_self=False)

    return run


def indexed(messages: Tensor, index: Tensor) -> Tensor:
    return messages.new_zeros(NODES, messages.shape[1]).index_reduce_(0, index, messages, "amax", include_self=False)


def segmented(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    def run(messages: Tensor, index: Tensor) -> Tensor:
        order = index.argsort(stable=True)
        lengths = torch.zeros(NODES, dtype=torch.int64).index_add(0, index, torch.ones_like(index))
        return torch.segment_reduce(messages[order], how, lengths=lengths, initial=0)

    return run


def convolved(aggregate: Callable[[Tensor, Tensor], Tensor]) -> Case:
    def run(m: Net, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        x = m.a(x).relu()
        x = torch.tanh(m.b(aggregate(x[source], target) + x))
        return m.c(aggregate(x.index_select(0, source), target))

    return Case(
        lambda: Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b", "b": "6: b.bias:0 b.weight:0 c.weight:1* @ c"},
        inputs=graph,
    )


def edge_convolution(m: Net, x: Tensor, edges: Tensor) -> Tensor:
    """Of both ends of an edge, and the largest over the edges of a node; batch norm over nodes."""
    source, target = edges
    x = m.norm(m.a(x)).relu()
    ends = torch.cat([x[target], x[source] - x[target]], -1)
    x = reduced("amax")(m.second(m.first(ends).relu()), target)
    return m.c(torch.stack([x, x.tanh()]).amax(0))


def several(m: Net, x: Tensor, edges: Tensor) -> Tensor:
    """Several sums side by side, and all layers side by side in the end; then one mean for each graph of a batch."""
    source, target = edges
    first = m.a(x).relu()
    both = [
        added(first[source], target),
        reduced("mean")(first[source], target),
        reduced("amin")(first[source], target),
    ]
    second = m.first(torch.cat(both, -1)).relu()
    joined = torch.cat([first, second], -1)
    batch = torch.arange(NODES) // 5
    means = joined.new_zeros(2, joined.shape[1]).scatter_reduce_(0, wide(batch, joined), joined, "mean")
    return m.c(means)


def placed(m: Net, x: Tensor, edges: Tensor) -> Tensor:
    x = m.a(x).relu()
    return m.c(torch.zeros_like(x).scatter_add(0, m.places, x))


class Attention(nn.Module):
    """Graph attention with `heads` heads, side by side or averaged; `dynamic`: as its second version."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, concat: bool, dynamic: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.concat, self.dynamic = heads, outputs, concat, dynamic
        self.lin = nn.Linear(inputs, heads * outputs, bias=False)
        self.att_source = nn.Parameter(torch.randn(1, heads, outputs))
        if not dynamic:
            self.att_target = nn.Parameter(torch.randn(1, heads, outputs))
        self.bias = nn.Parameter(torch.randn(heads * outputs if concat else outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        x = self.lin(x).view(-1, self.heads, self.size)
        if self.dynamic:
            logits = (F.leaky_relu(x[source] + x[target], 0.2) * self.att_source).sum(-1)
        else:
            ends = (x * self.att_source).sum(-1), (x * self.att_target).sum(-1)
            logits = F.leaky_relu(ends[0][source] + ends[1][target], 0.2)
        largest = logits.new_zeros(len(x), self.heads).scatter_reduce_(
            0, wide(target, logits), logits.detach(), "amax", include_self=False
        )
        weights = (logits - largest.index_select(0, target)).exp()
        weights = weights / (added(weights, target) + 1e-16).index_select(0, target)
        x = added(x[source] * weights.unsqueeze(-1), target)
        x = x.flatten(1) if self.concat else x.mean(1)
        return x + self.bias


class Attentive(nn.Module):
    def __init__(self, *, heads: int, concat: bool, dynamic: bool = False) -> None:
        super().__init__()
        self.a = Attention(5, 6, heads, concat=concat, dynamic=dynamic)
        self.b = Attention(6 * heads if concat else 6, 4, 1, concat=False, dynamic=dynamic)
        self.c = nn.Linear(4, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.c(self.b(self.a(x, edges).relu(), edges).relu())


CASES = {
    "scatter_add_": convolved(added),
    "scatter_add": convolved(added_anew),
    "scatter_reduce_, mean": convolved(reduced("mean")),
    "scatter_reduce_, largest": convolved(reduced("amax")),
    "scatter_reduce_, product": convolved(reduced("prod")),
    "index_reduce_": convolved(indexed),
    "segments, sums": convolved(segmented("sum")),
    "segments, largest": convolved(segmented("max")),
    "edge convolution": Case(
        lambda: Net(
            edge_convolution,
            a=nn.Linear(5, 6),
            norm=nn.BatchNorm1d(6),
            first=nn.Linear(12, 8),
            second=nn.Linear(8, 6),
            c=nn.Linear(6, 3),
        ),
        {
            "a": "6: a.bias:0 a.weight:0 first.weight:1*x2 norm.bias:0 norm.running_mean:0 norm.running_var:0 "
            "norm.weight:0 @ firstx2",
            "first": "8: first.bias:0 first.weight:0 second.weight:1* @ second",
            "second": "6: c.weight:1* second.bias:0 second.weight:0 @ c",
        },
        inputs=graph,
    ),
    "several sums, all layers, a mean per graph": Case(
        lambda: Net(several, a=nn.Linear(5, 6), first=nn.Linear(18, 8), c=nn.Linear(14, 3)),
        {
            "a": "6: a.bias:0 a.weight:0 c.weight:1* first.weight:1*x3 @ firstx3 c",
            "first": "8: c.weight:1* first.bias:0 first.weight:0 @ c",
        },
        inputs=graph,
    ),
    "an index of its own for every channel": Case(
        lambda: Net(
            placed,
            a=nn.Linear(5, 8),
            c=nn.Linear(8, 3),
            places=torch.arange(NODES * 8).reshape(NODES, 8) % NODES,
        ),
        {"a": "8: a.bias:0 a.weight:0 c.weight:1* places:1 @ c"},
        inputs=graph,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def proven_and_exact(model: nn.Module, inputs: Any, expected: list[int], *, oracle: bool = True) -> fk.UnitMap:
    units = fk.trace(model.eval(), inputs)
    assert sorted(units.groups[g].units for g in units.prunable) == expected
    double = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    assert_exact(model.double(), units, random_removal(units, 0.5, seed=2), [double], oracle=oracle)
    model.float()
    return units


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("heads", "concat", "expected"), [(1, True, [4, 6]), (2, True, [4, 6]), (8, True, [4, 8]), (2, False, [4, 6])]
)
def test_attention(heads: int, concat: bool, expected: list[int], dynamic: bool) -> None:
    """The larger of heads and their channels is the unit; vectors of attention are silenced with it."""
    torch.manual_seed(0)
    model = Attentive(heads=heads, concat=concat, dynamic=dynamic)
    units = proven_and_exact(model, graph(), expected, oracle=False)
    if heads < 8:
        silent = {str(a.axis) for g in units.prunable for a in units.groups[g].axes if a.consumer}
        assert {"a.att_source:2", "b.att_source:2"} <= silent


def test_nodes_have_classes() -> None:
    torch.manual_seed(0)
    model, (x, edges) = Attentive(heads=2, concat=True).eval(), graph()
    batches = [((x, edges), torch.arange(NODES) % 3)]
    for more in ({}, {"class_of": False}):
        scores = fk.score(model, batches, F.cross_entropy, progress=False, **more)
        assert scores.provenance["samples"] == NODES
        small, report = fk.prune(model, batches, F.cross_entropy, keep_params=0.6, progress=False, **more)
        assert small(x, edges).shape == (NODES, 3)
        assert report.choices["compensated"] > 0


def test_activations_on_edges_need_the_batch_for_a_sample() -> None:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 6), "first": nn.Linear(12, 8), "second": nn.Linear(8, 6), "c": nn.Linear(6, 3)}
    model, (x, edges) = Net(edge_convolution, norm=nn.BatchNorm1d(6), **parts).eval(), graph()
    batches = [((x, edges), torch.arange(NODES) % 3)]
    with pytest.raises(fk.InputError, match=r"does not run on the last of them alone.*samples_of=lambda batch: 1"):
        fk.score(model, batches, F.cross_entropy, class_of=False, progress=False)
    small, _ = fk.prune(
        model,
        batches,
        F.cross_entropy,
        keep_params=0.6,
        class_of=False,
        samples_of=lambda batch: 1,
        progress=False,
    )
    assert small(x, edges).shape == (NODES, 3)


PACKAGED: dict[str, tuple[dict[str, Any], list[int]]] = {
    "GCN": ({}, [12, 12]),
    "GraphSAGE": ({"aggr": "max"}, [12, 12]),
    "GAT": ({"heads": 2}, [6, 6]),
    "GIN": ({}, [3, 12, 12, 12, 12]),
    "EdgeCNN": ({"jk": "cat"}, [12, 12, 12, 12, 12, 12]),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_torch_geometric(name: str) -> None:
    models = pytest.importorskip("torch_geometric.nn.models")
    more, expected = PACKAGED[name]
    torch.manual_seed(0)
    proven_and_exact(getattr(models, name)(5, 12, 3, 3, **more), graph(), expected, oracle=False)
