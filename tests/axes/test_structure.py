"""How layers are put together: branches, shared modules, gates, heads, several inputs and outputs."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairkern.axes import solutions
from tests.axes.harness import Case, Net, check_exact, check_groups


def conv(i: int, o: int, k: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)


def residual(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.b(F.relu(m.bn(m.a(x))))
    x = x + m.d(F.relu(m.c(x)))
    return m.head(x.mean((2, 3)))


def option_a(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
    return m.head(F.relu(short + m.a(x)))


def dense(m: Net, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for bn, layer in zip(m.bns, m.layers, strict=True):
        features.append(layer(F.relu(bn(torch.cat(features, 1)))))
    return m.head(torch.cat(features, 1).mean((2, 3)))


def gated(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
    return m.b(x * gate)


def shared_norm(m: Net, x: Tensor) -> Tensor:
    return m.c(torch.cat([m.bn(m.a(x)), m.bn(m.b(x)).relu()], 1))


def with_auxiliary(m: Net, x: Tensor) -> Any:
    h = F.relu(m.a(x))
    out = m.c(F.relu(m.b(h)))
    return (out, m.aux2(F.relu(m.aux1(h)))) if m.training else out


def routed(m: Net, x: Tensor, expert: int = 0) -> Tensor:
    return m.b(m.experts[expert](m.a(x)))


class Named(NamedTuple):
    logits: Tensor
    extra: Any


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(sizes)))


def tied(first: nn.Module, second: nn.Module) -> Net:
    second.weight = first.weight
    return Net(
        lambda m, x: m.head(m.b(F.relu(m.a(m.stem(x))))), stem=nn.Linear(5, 6), a=first, b=second, head=nn.Linear(6, 2)
    )


def tied_by_memory(first: nn.Linear, second: nn.Linear) -> Net:
    model = tied(first, nn.Linear(6, 6))
    model.b = second
    model.double()
    second.weight.data = first.weight.data
    return model


def dropped(m: Net, x: Tensor) -> Any:
    x = F.dropout2d(F.dropout(m.a(x), training=m.training), training=m.training)
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.8) if m.training else 1.0
    x = m.b(F.alpha_dropout(x, training=m.training) * keep)
    return (x, m.aux(x.mean((2, 3)))) if m.training else x


CASES = {
    "residual stream": Case(
        lambda: Net(
            residual,
            stem=conv(3, 8),
            a=conv(8, 6),
            bn=nn.BatchNorm2d(6),
            b=conv(6, 8),
            c=conv(8, 5),
            d=conv(5, 8),
            head=nn.Linear(8, 2),
        ),
        {
            "stem": (
                "8: a.weight:1* b.bias:0 b.weight:0 c.weight:1* d.bias:0 d.weight:0 head.weight:1* stem.bias:0 "
                "stem.weight:0 @ a c head"
            ),
            "a": "6: a.bias:0 a.weight:0 b.weight:1* bn.bias:0 bn.running_mean:0 bn.running_var:0 bn.weight:0 @ b",
            "c": "5: c.bias:0 c.weight:0 d.weight:1* @ d",
        },
    ),
    "shortcut by padding": Case(
        lambda: Net(option_a, stem=conv(3, 4), a=conv(4, 8, 1, stride=2), head=conv(8, 2)),
        {"stem": "4: a.bias:0 a.weight:0 a.weight:1* head.weight:1* stem.bias:0 stem.weight:0 @ a head"},
        {"a.weight:0": "is padding"},
    ),
    "dense block": Case(
        lambda: Net(
            dense,
            stem=conv(3, 4),
            bns=nn.ModuleList(nn.BatchNorm2d(n) for n in (4, 7)),
            layers=nn.ModuleList([conv(4, 3), conv(7, 3)]),
            head=nn.Linear(10, 2),
        ),
        {
            "stem": (
                "4: bns.0.bias:0 bns.0.running_mean:0 bns.0.running_var:0 bns.0.weight:0 bns.1.bias:0 "
                "bns.1.running_mean:0 bns.1.running_var:0 bns.1.weight:0 head.weight:1* layers.0.weight:1* "
                "layers.1.weight:1* stem.bias:0 stem.weight:0 @ layers.0 layers.1 head"
            ),
            "layers.0": (
                "3: bns.1.bias:0 bns.1.running_mean:0 bns.1.running_var:0 bns.1.weight:0 head.weight:1* "
                "layers.0.bias:0 layers.0.weight:0 layers.1.weight:1* @ layers.1 head"
            ),
            "layers.1": "3: head.weight:1* layers.1.bias:0 layers.1.weight:0 @ head",
        },
    ),
    "squeeze and excitation": Case(
        lambda: Net(gated, a=conv(3, 8), down=conv(8, 4), up=conv(4, 8), b=conv(8, 2)),
        {
            "a": "8: a.bias:0 a.weight:0 b.weight:1* down.weight:1* up.bias:0 up.weight:0 @ down b",
            "down": "4: down.bias:0 down.weight:0 up.weight:1* @ up",
        },
    ),
    "one activation, two consumers": Case(
        lambda: Net(lambda m, x: m.b(h := m.a(x)) + m.c(h), a=conv(3, 8), b=conv(8, 4), c=conv(8, 4)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* c.weight:1* @ b+c"},
    ),
    "inverted bottleneck": Case(
        lambda: nn.Sequential(
            conv(3, 8),
            conv(8, 16),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            conv(16, 16, 3, groups=16),
            nn.ReLU6(True),
            conv(16, 8),
            conv(8, 2),
        ),
        {
            "0": "8: 0.bias:0 0.weight:0 1.weight:1* @ 1",
            "1": (
                "16: 1.bias:0 1.weight:0 2.bias:0 2.running_mean:0 2.running_var:0 2.weight:0 4.bias:0 "
                "4.weight:0 6.weight:1* @ 6"
            ),
            "6": "8: 6.bias:0 6.weight:0 7.weight:1* @ 7",
        },
    ),
    "module called twice in a row": Case(
        lambda: Net(lambda m, x: m.b(m.s(F.relu(m.s(m.a(x))))), a=conv(3, 8), s=conv(8, 8), b=conv(8, 2)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* s.bias:0 s.weight:0 s.weight:1* @ s s#1 b"},
    ),
    "module called on two branches": Case(
        lambda: Net(
            lambda m, x: m.c(m.s(m.a(x)) + m.s(m.b(x))), a=conv(3, 8), b=conv(3, 8), s=conv(8, 6), c=conv(6, 2)
        ),
        {
            "a": "8: a.bias:0 a.weight:0 b.bias:0 b.weight:0 s.weight:1* @ s s#1",
            "s": "6: c.weight:1* s.bias:0 s.weight:0 @ c",
        },
    ),
    "batch norm shared by two branches": Case(
        lambda: Net(shared_norm, a=conv(3, 6), b=conv(3, 6), bn=nn.BatchNorm2d(6), c=conv(12, 2)),
        {
            "a": (
                "6: a.bias:0 a.weight:0 b.bias:0 b.weight:0 bn.bias:0 bn.running_mean:0 bn.running_var:0 "
                "bn.weight:0 c.weight:1*x2 @ cx2"
            )
        },
    ),
    "tied weights": Case(
        lambda: tied(nn.Linear(6, 6), nn.Linear(6, 6)),
        {"stem": "6: a.bias:0 a.weight:0 a.weight:1* b.bias:0 head.weight:1* stem.bias:0 stem.weight:0 @ a b head"},
        shape=(3, 5),
    ),
    "tied by memory": Case(
        lambda: tied_by_memory(nn.Linear(6, 6), nn.Linear(6, 6)),
        {
            "stem": (
                "6: a.bias:0 a.weight:0 a.weight:1* b.bias:0 b.weight:0 b.weight:1* head.weight:1* "
                "stem.bias:0 stem.weight:0 @ a b head"
            )
        },
        shape=(3, 5),
    ),
    "dropout in train mode": Case(
        lambda: Net(dropped, a=conv(3, 8), b=conv(8, 4), aux=nn.Linear(4, 3)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
    ),
    "tied, transposed": Case(
        lambda: Net(lambda m, x: m.b(F.linear(F.relu(m.a(x)), m.a.weight.t())), a=nn.Linear(5, 8), b=nn.Linear(5, 2)),
        {"a": "8: a.bias:0 a.weight:0* @ a.weight#1"},
        shape=(3, 5),
    ),
    "unused parameter": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 8), b=nn.Linear(8, 2), left=nn.Linear(3, 7)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"left.weight:0": "not reached"},
        shape=(3, 5),
    ),
    "unused parameter of a size that fits": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 8), b=nn.Linear(8, 2), left=nn.Linear(16, 7)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"left.weight:1": "not reached"},
        shape=(3, 5),
    ),
    "auxiliary head in train mode": Case(
        lambda: Net(with_auxiliary, a=conv(3, 8), b=conv(8, 6), c=conv(6, 2), aux1=conv(8, 5), aux2=conv(5, 2)),
        {"a": "8: a.bias:0 a.weight:0 aux1.weight:1* b.weight:1* @ b", "b": "6: b.bias:0 b.weight:0 c.weight:1* @ c"},
        {"aux1.weight:0": "is consumed in train mode only"},
    ),
    "expert that the inputs do not reach": Case(
        lambda: Net(routed, a=nn.Linear(5, 8), experts=nn.ModuleList([mlp(8, 6, 7), mlp(8, 6, 7)]), b=nn.Linear(7, 2)),
        {"experts.0.0": "6: experts.0.0.bias:0 experts.0.0.weight:0 experts.0.1.weight:1* @ experts.0.1"},
        {
            "a.weight:0": "may be read by experts.1",
            "experts.1.0.weight:0": "not reached",
            "b.weight:1": "may be read by",
        },
        shape=(3, 5),
    ),
    "experts reached by further inputs": Case(
        lambda: Net(routed, a=nn.Linear(5, 8), experts=nn.ModuleList([mlp(8, 6, 7), mlp(8, 6, 7)]), b=nn.Linear(7, 2)),
        {
            "a": "8: a.bias:0 a.weight:0 experts.0.0.weight:1* experts.1.0.weight:1* @ experts.0.0 experts.1.0",
            "experts.0.0": "6: experts.0.0.bias:0 experts.0.0.weight:0 experts.0.1.weight:1* @ experts.0.1",
            "experts.0.1": (
                "7: b.weight:1* experts.0.1.bias:0 experts.0.1.weight:0 experts.1.1.bias:0 experts.1.1.weight:0 @ b"
            ),
            "experts.1.0": "6: experts.1.0.bias:0 experts.1.0.weight:0 experts.1.1.weight:1* @ experts.1.1",
        },
        inputs=lambda: (torch.randn(3, 5), 0),
        more=(lambda: (torch.randn(2, 5), 1),),
    ),
    "keyword inputs": Case(
        lambda: Net(
            lambda m, *, left, right: m.c(m.a(left) + m.b(right)),
            a=nn.Linear(5, 8),
            b=nn.Linear(3, 8),
            c=nn.Linear(8, 2),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.bias:0 b.weight:0 c.weight:1* @ c"},
        inputs=lambda: {"left": torch.randn(4, 5), "right": torch.randn(4, 3)},
    ),
    "modules called by keyword": Case(
        lambda: Net(lambda m, x: m.b(input=m.a(input=x)), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        shape=(4, 5),
    ),
    "positional inputs": Case(
        lambda: Net(lambda m, x, y: m.b(m.a(x) * y[..., None]), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        inputs=lambda: (torch.randn(4, 5), torch.randn(4)),
    ),
    "named outputs": Case(
        lambda: Net(
            lambda m, x: Named(m.b(h := m.a(x)), {"skip": [m.c(h)]}),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, 2),
            c=nn.Linear(8, 3),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* c.weight:1* @ b+c"},
        shape=(4, 5),
    ),
    "features are the output": Case(
        lambda: Net(lambda m, x: (m.b(h := m.a(x)), h), a=nn.Linear(5, 8), b=nn.Linear(8, 2)),
        {},
        {"a.weight:0": "output"},
        shape=(4, 5),
    ),
    "output without units": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)).mean(), a=nn.Linear(5, 8), b=nn.Linear(8, 3)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"b.weight:0": "mean runs over it"},
        shape=(4, 5),
    ),
    "one output": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:1* @ 1"},
        shape=(4, 5),
    ),
    "nothing to cut": Case(
        lambda: nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), {}, {"0.weight:0": "runs over it|output"}, shape=(4, 5)
    ),
    "one unit": Case(lambda: nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 3)), {}, shape=(4, 5)),
    "no parameters": Case(lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), {}),
    "two groups in one dimension": Case(
        lambda: Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 6), c=conv(10, 2)),
        {"a": "4: a.bias:0 a.weight:0 c.weight:1* @ c", "b": "6: b.bias:0 b.weight:0 c.weight:1* @ c"},
    ),
    "inputs concatenated with units": Case(
        lambda: Net(lambda m, x: m.b(torch.cat([x, m.a(x)], 1)), a=conv(3, 6), b=conv(9, 2)),
        {"a": "6: a.bias:0 a.weight:0 b.weight:1* @ b"},
        {"b.weight:1": "fixed size"},
    ),
    "zeros meet units": Case(
        lambda: Net(lambda m, x: m.b(torch.maximum(h := m.a(x), h.new_zeros(h.shape))), a=conv(3, 8), b=conv(8, 2)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
    ),
    "uniform state contracted": Case(
        lambda: Net(
            lambda m, x: m.c(m.a(x) + m.b(x.new_zeros(4, 6))), a=nn.Linear(5, 8), b=nn.Linear(6, 8), c=nn.Linear(8, 2)
        ),
        {"a": "8: a.bias:0 a.weight:0 b.bias:0 b.weight:0 c.weight:1* @ c"},
        shape=(4, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def test_equal_positions_of_a_map_are_one_array() -> None:
    """Of a decoder with many layers positions are most of a map: those of a stream on every axis and tap of it."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Identity())]
    model = nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 8), nn.Linear(8, 2))
    certain, _ = solutions(model, [torch.randn(2, 3)])
    groups = certain.units.groups
    found = [held.positions for group in groups for held in (*group.axes, *group.taps, *group.outputs)]
    assert len(found) > len(groups) + 4
    assert len({id(positions) for positions in found}) == len({(p.shape, p.tobytes()) for p in found})
