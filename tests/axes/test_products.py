"""Products with vectors, of three factors, distances, bags of embeddings, and operators in place without their tag."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.axes.harness import Case, Net, check_exact, check_groups

A = "8: a.bias:0 a.weight:0"


def pooled(m: Net, x: Tensor) -> Tensor:
    """Attention pooling: a vector scores the places."""
    x = m.a(x).tanh()
    return m.c((x * (x @ m.w).softmax(1).unsqueeze(-1)).sum(1))


def distant(m: Net, x: Tensor) -> Tensor:
    return m.c(torch.cdist(m.a(x), m.centres).neg().softmax(-1))


def bags(m: Net, x: Tensor) -> Tensor:
    return m.c(m.a((x * 3).long().abs() % 10).relu())


CASES = {
    "a vector": Case(
        lambda: Net(lambda m, x: m.a(x).relu() @ m.w, a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(8))),
        {"a": f"{A} w:0* @ w"},
        shape=(4, 5),
    ),
    "a vector that is computed": Case(
        lambda: Net(lambda m, x: m.a(x).relu() @ (0.5 * m.w), a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(8))),
        {"a": f"{A} w:0* @ w"},
        shape=(4, 5),
    ),
    "attention pooling": Case(
        lambda: Net(pooled, a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(8)), c=nn.Linear(8, 3)),
        {"a": f"{A} c.weight:1* w:0* @ w c"},
        shape=(4, 6, 5),
    ),
    "of one sample": Case(
        lambda: Net(lambda m, x: m.w @ m.a(x[0]).relu(), a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(3, 8))),
        {"a": f"{A} w:1* @ w"},
        shape=(1, 5),
    ),
    "three factors": Case(
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x).relu(), m.d(x).tanh()).relu()),
            a=nn.Linear(5, 8),
            d=nn.Linear(5, 6),
            b=nn.Bilinear(8, 6, 7),
            c=nn.Linear(7, 3),
        ),
        {
            "a": f"{A} b.weight:1* @ b.weight",
            "d": "6: b.weight:2* d.bias:0 d.weight:0 @ b.weight",
            "b": "7: b.bias:0 b.weight:0 c.weight:1* @ c",
        },
        shape=(4, 5),
    ),
    "distances": Case(
        lambda: Net(distant, a=nn.Linear(5, 8), centres=nn.Parameter(torch.randn(6, 8)), c=nn.Linear(6, 3)),
        {},
        {"a.weight:0": "distances are taken over it", "centres:0": "softmax runs over it"},
        shape=(4, 5),
    ),
    "bags": Case(
        lambda: Net(bags, a=nn.EmbeddingBag(10, 8), c=nn.Linear(8, 3)),
        {"a": "8: a.weight:1 c.weight:1* @ c"},
        {"a.weight:0": "rows are looked up"},
        shape=(4, 5),
    ),
    "in place": Case(
        lambda: Net(lambda m, x: m.c(m.a(x).abs_()), a=nn.Linear(5, 8), c=nn.Linear(8, 3)),
        {"a": f"{A} c.weight:1* @ c"},
        shape=(4, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    units = check_groups(CASES[name])
    assert not any("without a rule" in note for note in units.notes)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.groups])
def test_exact(name: str) -> None:
    check_exact(CASES[name])
