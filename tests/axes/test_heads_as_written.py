"""Attention as others write it: head counts in dictionaries and private attributes, gates, heads that talk."""

from __future__ import annotations

import copy
import pickle
import re
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


class Net(nn.Module):
    """Attention, and a layer that can be cut."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.a, self.b = attention, nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.attention(x)).relu())


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


class Kept(Attribute):
    """Adds a bias per head that grows with the distance, and keeps it in a buffer for shorter inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.position = Distance()

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        scores = q @ k.transpose(-2, -1) * SIZE**-0.5 + self.position(x.shape[1])
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.linspace(0.1, 0.4, HEADS)[:, None, None], persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, n: int) -> Tensor:
        if self.bias is None or self.bias.shape[-1] < n:
            places = torch.arange(n)
            bias = -(places[:, None] - places).abs() * self.slopes
            self.register_buffer("bias", bias, persistent=False)
        return self.bias[:, -n:, -n:]


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
    Kept: {"q": HEADS},
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


class Normed(Attribute):
    """A norm over mixed heads holds those of the values, a product the queries' positions; one matrix makes both."""

    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv, self.over_heads = nn.Linear(WIDTH, 3 * HEADS * SIZE), nn.LayerNorm(HEADS)
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, -1))
        weights = torch.einsum("bhij,hg->bgij", self.weights(q, k), self.mix)
        weights = self.over_heads(weights.movedim(1, -1)).movedim(-1, 1)
        return (weights @ v).transpose(1, 2).flatten(2)


def test_what_a_pass_keeps_in_a_buffer_is_no_part_of_the_model() -> None:
    torch.manual_seed(0)
    model = Kept().double().eval()
    plans = []
    for length in (None, 3, 7):  # before any call, and with what calls of other lengths have kept
        if length is not None:
            model(X.new_zeros(1, length, WIDTH))
        units = fk.trace(model, X)
        plans.append(build(units, random_removal(units, 0.5, seed=0)))
        small = fk.apply(model, plans[0])
        assert all(small(X.new_ones(1, n, WIDTH)).shape == (1, n, 3) for n in (3, 9, 5))
    assert plans[0].shapes == plans[1].shapes == plans[2].shapes


def test_a_group_of_one_unit_says_what_makes_it_one() -> None:
    torch.manual_seed(0)
    groups = {group.name: str(group.frozen) for group in fk.trace(Net(Normed()).double().eval(), X).groups}
    assert re.search("one unit: .*two activations are contracted.*layer norm runs over it", groups["attention.qkv"])


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
