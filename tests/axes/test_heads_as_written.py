"""Attention as others write it: head counts in dictionaries and private attributes, gates, heads that talk."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.axes.harness import assert_exact

WIDTH, HEADS, SIZE = 12, 4, 6
X = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Split(nn.Module):
    """[b, n, h · d] → [b, h, n, d]; holds the number of heads in a dictionary and as pairs, and works out the rest."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.lengths, self.pairs = lengths, tuple(lengths.items())

    def forward(self, x: Tensor) -> Tensor:
        (_, heads), b, n, whole = self.pairs[0], *x.shape
        if whole % heads:
            raise ValueError(f"{whole} is not divisible by {heads}")
        assert dict(self.pairs) == self.lengths
        return x.reshape(b, n, heads, whole // heads).permute(0, 2, 1, 3)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * SIZE
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out = nn.Linear(inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.out(self.attend(self.norm(x))))

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1)


class InLayers(Base):
    """Heads are split by layers that hold their number, as einops' are."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = nn.ModuleList(Split(h=HEADS) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(m(x)) for split, m in zip(self.splits, (self.q, self.k, self.v), strict=True))
        return (self.weights(q, k) @ v).permute(0, 2, 1, 3).flatten(2)


class Private(Base):
    """Heads are folded into the batch, by a private attribute."""

    def __init__(self) -> None:
        super().__init__()
        self._n_heads = HEADS

    def _fold(self, x: Tensor) -> Tensor:
        b, n, whole = x.shape
        size = whole // self._n_heads
        return x.reshape(b, n, self._n_heads, size).transpose(1, 2).reshape(b * self._n_heads, n, size)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self._fold(self.q(x)), self._fold(self.k(x)), self._fold(self.v(x))
        mixed = self.weights(q, k) @ v
        size = mixed.shape[-1]
        mixed = mixed.reshape(len(x), self._n_heads, x.shape[1], size).transpose(1, 2)
        return mixed.reshape(len(x), x.shape[1], self._n_heads * size)


class Attribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Gated(Attribute):
    """What the heads give is merged, split again and gated position by position."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HEADS * SIZE)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        mixed = (self.weights(q, k) @ v).transpose(1, 2).flatten(2)
        return (self._split(mixed) * self._split(self.gate(x)).sigmoid()).transpose(1, 2).flatten(2)


class Talking(Attribute):
    """Scores of all heads are mixed before the softmax, weights after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = (nn.Parameter(torch.randn(HEADS, HEADS)) for _ in range(2))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        scores = torch.einsum("bhij,hg->bgij", q @ k.transpose(-2, -1) * SIZE**-0.5, self.before)
        weights = torch.einsum("bhij,hg->bgij", scores.softmax(-1), self.after)
        return (weights @ v).transpose(1, 2).flatten(2)


# class -> (name of a group, its units) for every group
CASES: dict[type[Base], dict[str, int]] = {
    InLayers: {"q": HEADS},
    Private: {"q": HEADS},
    Gated: {"q": HEADS},
    Talking: {"q": HEADS, "v": SIZE, "before": HEADS},  # values lose a position of every head
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_heads_go(kind: Callable[[], Base]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    units = fk.trace(model, X)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == CASES[kind]
    assert units.groups[0].kind == "head"
    for fraction in (0.3, 0.5):  # of one head einsum makes no matrix product
        small = assert_exact(model, units, random_removal(units, fraction, seed=1), [X])
        for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert torch.equal(again(X), small(X))


def test_numbers_in_collections_follow_and_the_model_keeps_its_own() -> None:
    torch.manual_seed(0)
    model = InLayers().double().eval()
    units = fk.trace(model, X)
    plan = build(units, random_removal(units, 0.5, seed=0))
    small = fk.apply(model, plan)
    assert [(s.lengths, s.pairs) for s in small.splits] == [({"h": 2}, (("h", 2),))] * 3
    assert [(s.lengths, s.pairs) for s in model.splits] == [({"h": 4}, (("h", 4),))] * 3
    shared = model.splits[0].lengths
    fk.apply(model, plan, inplace=True)
    assert model.splits[0].lengths == {"h": 2}
    assert shared == {"h": 4}, "another module may hold the same dictionary"
