"""Groups that are read at several places: a residual stream, branches, a recurrent layer. Against sums made anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import fairkern as fk
from fairkern.model.recurrent import reading
from tests.capture.test_recurrent import KINDS, Rows, sequences
from tests.capture.test_residual import lost, price
from tests.loops import loop

Y = torch.arange(24) % 3
RIDGE = 1e-4


class Stream(nn.Module):
    """A residual stream that two blocks read and add to, and that a head reads besides; all linear, of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.other, self.back = nn.Linear(8, 7), nn.Linear(7, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(torch.relu(self.up(x)))
        x = x + self.back(torch.tanh(self.other(x)))
        return self.head(x)

    @torch.no_grad()
    def read(self, x: Tensor) -> dict[str, np.ndarray]:
        """What the consumers of the stream read."""
        first = self.enter(x)
        second = first + self.down(torch.relu(self.up(first)))
        third = second + self.back(torch.tanh(self.other(second)))
        return {"up": first.numpy(), "other": second.numpy(), "head": third.numpy()}


def scored(model: nn.Module, x: Tensor, **options: object) -> tuple[fk.Scores, int]:
    """The scores, and the group with most taps."""
    units = fk.trace(model, x[:2])
    loader = list(zip(x.split([10, 14]), Y.split([10, 14]), strict=True))
    scores = fk.score(
        model, loader, nn.CrossEntropyLoss(), units=units, projections=4, gram=True, progress=False, **options
    )
    return scores, int(np.argmax([len(g.taps) for g in units.groups]))


def stream() -> tuple[Stream, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return Stream().double().eval(), x + Y[:, None]


def test_u_is_the_largest_and_r_the_sum_over_taps() -> None:
    model, x = stream()
    scores, g = scored(model, x)
    read = model.read(x)
    assert {t.name for t in scores.units.groups[g].taps} == {f"{name}:input" for name in read}
    y = Y.numpy()
    u = np.zeros(8)
    for act, c, (j, k) in itertools.product(read.values(), range(8), itertools.combinations(range(3), 2)):
        u[c] = max(u[c], wasserstein_distance(act[y == j, c], act[y == k, c]))
    np.testing.assert_allclose(scores.signals["wasserstein"][g], u, rtol=1e-9)
    signed, absolute = np.zeros(8), np.zeros(8)
    for module in (model.up, model.other, model.head):
        # Σ a · ∂L/∂a at a consumer is Σ w · ∂L/∂w over what it reads of the unit, sample by sample
        terms = []
        for s in range(24):
            model.zero_grad()
            nn.functional.cross_entropy(model(x[s : s + 1]), Y[s : s + 1]).backward()
            terms.append((module.weight * module.weight.grad).sum(0).detach().numpy())
        signed += np.abs(np.sum(terms, 0)) / 24
        absolute += np.abs(terms).sum(0) / 24
    np.testing.assert_allclose(scores.signals["taylor"][g], absolute, rtol=1e-9, atol=1e-14)
    again, _ = scored(model, x, reduction="signed")
    np.testing.assert_allclose(again.signals["taylor"][g], signed, rtol=1e-9, atol=1e-14)


def steps(values: np.ndarray, cost: Callable[[list[int]], float]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in their order and what that order's steps cost, by fits from scratch."""
    order = np.argsort(values, kind="stable").tolist()
    costs = [cost(order[:k]) for k in range(1, len(order) + 1)]
    assert order[0] == min(range(len(order)), key=lambda unit: cost([unit]))
    return values[order], np.maximum.accumulate(np.diff(costs, prepend=0.0))


def test_residual_errors_add_over_the_consumers_of_a_stream() -> None:
    model, x = stream()
    scores, g = scored(model, x)
    read = model.read(x)

    weights = {name: getattr(model, name).weight.detach().numpy() for name in read}
    each = {name: price(model, x, Y, getattr(model, name), weights[name]) for name in read}

    def cost(gone: list[int]) -> float:
        return sum(each[name] * lost(act, weights[name], gone, RIDGE) for name, act in read.items())

    np.testing.assert_allclose(*steps(scores.signals["residual"][g], cost), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_errors_of_a_recurrent_layer(kind: str, layers: int, both: bool) -> None:
    """What the head loses, and the mean over the weights that read states of the layer itself."""
    torch.manual_seed(1)
    model = Rows(KINDS[kind](4, 6, layers, bidirectional=both, batch_first=True)).double().eval()
    x = sequences(24, 5)
    scores, g = scored(model, x)
    own, outputs = loop(model.rnn, list(x))
    last = torch.stack([states[-1] for states in outputs]).numpy()

    read: dict[str, tuple[np.ndarray, list[np.ndarray]]] = {}  # both directions of a layer read the one below
    for name, states in own.items():
        read.setdefault(reading(name), (states, []))[1].append(getattr(model.rnn, name).detach().numpy())

    def share(states: np.ndarray, weight: np.ndarray, gone: list[int]) -> float:
        places = [unit + 6 * d for unit in gone for d in range(states.shape[1] // 6)]
        return lost(states, weight, places, RIDGE) / float(np.trace(weight @ np.cov(states.T, bias=True) @ weight.T))

    head = model.out.weight.detach().numpy()
    at_stake = price(model, x, Y, model.out, head) * float(np.trace(head @ np.cov(last.T, bias=True) @ head.T))

    def cost(gone: list[int]) -> float:
        inner = sum(len(weights) * share(states, np.concatenate(weights), gone) for states, weights in read.values())
        return at_stake * (share(last, head, gone) + inner / len(own))

    assert {t.name for t in scores.units.groups[g].taps} == {"out:input", *(f"rnn:{reading(n)}" for n in own)}
    np.testing.assert_allclose(*steps(scores.signals["residual"][g], cost), rtol=1e-6, atol=1e-12)
