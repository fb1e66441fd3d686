"""One function written in two ways has the same units, and what is cut of it leaves the same function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from bench.graphs.pieces import built
from fairkern.plans.build import build

IMAGES, TOKENS = (3, 3, 6, 6), (3, 7, 5)
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Ways:
    """Modules by name, made once for both; the forward passes; the shape of the input."""

    parts: Callable[[], dict[str, nn.Module]]
    forwards: tuple[Forward, ...]
    shape: tuple[int, ...] = IMAGES


def convolutions() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, 8, 3, padding=1), "n": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 6, 1), "o": nn.Linear(6, 2)}


def pair() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 6, 1), "c": nn.Conv2d(14, 5, 1), "o": nn.Linear(5, 2)}


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(5, 8), "b": nn.Linear(8, 6), "o": nn.Linear(6, 2)}


def attention() -> dict[str, nn.Module]:
    return {"e": nn.Linear(5, 8), "qkv": nn.Linear(8, 36), "p": nn.Linear(12, 8), "o": nn.Linear(8, 2)}


def gate() -> dict[str, nn.Module]:
    return {"a": nn.Linear(5, 16), "b": nn.Linear(8, 6), "o": nn.Linear(6, 2)}


def _norm(m: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias, False, 0.1, m.n.eps)


def _by_hand(m: nn.Module, x: Tensor) -> Tensor:
    slope = m.n.weight / (m.n.running_var + m.n.eps).sqrt()
    return (x - m.n.running_mean.view(1, -1, 1, 1)) * slope[:, None, None] + m.n.bias[:, None, None]


def _attend(m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v)
    return m.p(y.transpose(1, 2).reshape(len(y), -1, 12))


def _permuted(m: nn.Module, x: Tensor) -> Tensor:
    x = m.e(x)
    return m.o(x + _attend(m, *m.qkv(x).reshape(len(x), -1, 3, 3, 4).permute(2, 0, 3, 1, 4)))


def _chunked(m: nn.Module, x: Tensor) -> Tensor:
    x = m.e(x)
    return m.o(x + _attend(m, *(t.unflatten(-1, (3, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))))


def _sliced(m: nn.Module, x: Tensor) -> Tensor:
    x = m.e(x)
    y = m.qkv(x)
    return m.o(
        x + _attend(m, *(t.view(len(x), -1, 3, 4).transpose(1, 2) for t in (y[..., :12], y[..., 12:24], y[..., 24:])))
    )


def _split(m: nn.Module, x: Tensor) -> Tensor:
    x = m.e(x)
    return m.o(x + _attend(m, *(t.view(len(x), -1, 3, 4).transpose(1, 2) for t in m.qkv(x).split(12, dim=2))))


def _thirds(m: nn.Module, x: Tensor) -> Tensor:
    x = m.e(x)
    parts = zip(m.qkv.weight.chunk(3), m.qkv.bias.chunk(3), strict=True)
    return m.o(x + _attend(m, *(F.linear(x, w, b).unflatten(-1, (3, 4)).transpose(1, 2) for w, b in parts)))


WAYS = {
    "a module and its function": Ways(
        convolutions,
        (
            lambda m, x: m.o(m.b(m.n(m.a(x)).relu()).mean((2, 3))),
            lambda m, x: F.linear(
                F.conv2d(F.relu(_norm(m, F.conv2d(x, m.a.weight, m.a.bias, padding=1))), m.b.weight, m.b.bias).mean(
                    (2, 3)
                ),
                m.o.weight,
                m.o.bias,
            ),
            lambda m, x: m.o(m.b(F.relu_(_by_hand(m, m.a(x)))).flatten(2).mean(-1)),
        ),
    ),
    "a pointwise convolution as a product": Ways(
        convolutions,
        (
            lambda m, x: m.o(m.b(m.a(x).tanh()).amax((2, 3))),
            lambda m, x: m.o(F.linear(m.a(x).tanh().movedim(1, -1), m.b.weight[:, :, 0, 0], m.b.bias).amax((1, 2))),
            lambda m, x: m.o(
                (torch.einsum("bchw,oc->bohw", m.a(x).tanh(), m.b.weight.squeeze()) + m.b.bias.view(-1, 1, 1)).amax(
                    (2, 3)
                )
            ),
        ),
    ),
    "pooled, viewed and flattened": Ways(
        convolutions,
        (
            lambda m, x: m.o(F.adaptive_avg_pool2d(m.b(m.a(x)), 1).flatten(1)),
            lambda m, x: m.o(F.adaptive_avg_pool2d(m.b(m.a(x)), 1).view(x.shape[0], -1)),
            lambda m, x: m.o(F.adaptive_avg_pool2d(m.b(m.a(x)), 1).reshape(-1, 6)),
            lambda m, x: m.o(F.avg_pool2d(m.b(m.a(x)), 6)[:, :, 0, 0]),
            lambda m, x: m.o(m.b(m.a(x)).sum((2, 3)) / 36),
        ),
    ),
    "concatenated in either order": Ways(
        pair,
        (
            lambda m, x: m.o(m.c(torch.cat([m.a(x), m.b(x)], 1)).mean((2, 3))),
            lambda m, x: m.o(
                (F.conv2d(m.a(x), m.c.weight[:, :8]) + F.conv2d(m.b(x), m.c.weight[:, 8:], m.c.bias)).mean((2, 3))
            ),
        ),
    ),
    "layers and matrices": Ways(
        layers,
        (
            lambda m, x: m.o(m.b(m.a(x).relu()).mean(1)),
            lambda m, x: m.o((torch.clamp(x @ m.a.weight.T + m.a.bias, min=0) @ m.b.weight.mT + m.b.bias).mean(1)),
            lambda m, x: m.o(torch.einsum("bnc,oc->bo", m.a(x).relu(), m.b.weight) / x.shape[1] + m.b.bias),
            lambda m, x: m.o(m.b(m.a(x.flatten(0, 1)).relu()).view(x.shape[0], -1, 6).mean(1)),
        ),
        TOKENS,
    ),
    "halves of a gate": Ways(
        gate,
        (
            lambda m, x: m.o(m.b(F.glu(m.a(x))).amax(1)),
            lambda m, x: m.o(
                m.b(
                    torch.mul(*(f(y) for f, y in zip((torch.clone, torch.sigmoid), m.a(x).chunk(2, -1), strict=True)))
                ).amax(1)
            ),
            lambda m, x: m.o(m.b(m.a(x)[..., :8] * m.a(x)[..., 8:].sigmoid()).amax(1)),
            lambda m, x: m.o(
                m.b(m.a(x).unflatten(-1, (2, 8))[:, :, 0] * m.a(x).view(*x.shape[:2], 2, 8)[:, :, 1].sigmoid()).amax(1)
            ),
        ),
        TOKENS,
    ),
    "heads of one matrix": Ways(attention, (_permuted, _chunked, _sliced, _split, _thirds), TOKENS),
}


def units_of(model: nn.Module, x: Tensor) -> tuple[fk.UnitMap, dict[frozenset[tuple[str, bytes]], int]]:
    """The map, and every group that can be cut by the places that it holds, with its number."""
    units = fk.trace(model, x)
    places = {
        frozenset(
            (str(a.axis), a.positions.tobytes()) for a in units.groups[g].axes if a.axis.tensor.endswith("weight")
        ): g
        for g in units.prunable
    }
    return units, places


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS.keys())
def test_units_are_the_same(ways: Ways) -> None:
    torch.manual_seed(0)
    parts = ways.parts()
    x = torch.randn(ways.shape, dtype=torch.float64)
    models = [built(forward, **parts).double().eval() for forward in ways.forwards]
    with torch.no_grad():
        for other in models[1:]:
            torch.testing.assert_close(other(x), models[0](x), rtol=1e-12, atol=1e-12)
    units, places = units_of(models[0], x)
    assert places
    removed = [np.arange(g.units // 2 if i in units.prunable else 0) for i, g in enumerate(units.groups)]
    small = fk.apply(models[0], build(units, removed))
    for model in models[1:]:
        others, found = units_of(model, x)
        assert found.keys() == places.keys()
        same = {found[key]: removed[g] for key, g in places.items()}
        cut = fk.apply(model, build(others, [same.get(i, np.arange(0)) for i in range(len(others.groups))]))
        torch.testing.assert_close(cut(x[:2]), small(x[:2]), rtol=1e-12, atol=1e-12)
