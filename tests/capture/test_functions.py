"""Consumers that are function calls, and samples that do not come first: scored as their plain twins are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.heads import HEADS, WIDTH, Block

X = torch.randn(24, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 3


class Twin(nn.Module):
    """Two layers on [n, 6, 5] and a mean over the six positions; `middle` says how they are computed."""

    def __init__(self, middle: Callable[[Twin, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(4, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self, x)).mean(1))


def modules(m: Twin, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())


def unfold(x: Tensor) -> Tensor:
    """[n, 6, 5] → [n · 3, 2, 5]: three windows of two positions for every sample."""
    return x.reshape(-1, 3, 2, 5).flatten(0, 1)


# how the same two layers can be computed: functions, and layouts of samples
WAYS: dict[str, Callable[[Twin, Tensor], Tensor]] = {
    "linear": lambda m, x: F.linear(F.linear(x, m.a.weight, m.a.bias).relu(), m.b.weight, m.b.bias),
    "linear by keywords": lambda m, x: F.linear(bias=m.b.bias, weight=m.b.weight, input=m.a(x).relu()),
    "matrix product": lambda m, x: m.a(x).relu() @ m.b.weight.t() + m.b.bias,
    "weight first": lambda m, x: (m.b.weight @ m.a(x).relu().transpose(1, 2)).transpose(1, 2) + m.b.bias,
    "einsum": lambda m, x: torch.einsum("npi,oi->npo", m.a(x).relu(), m.b.weight) + m.b.bias,
    "convolution": lambda m, x: F.conv1d(m.a(x).relu().transpose(1, 2), m.b.weight[..., None], m.b.bias).transpose(
        1, 2
    ),
    "addmm": lambda m, x: torch.addmm(m.b.bias, m.a(x).relu().flatten(0, 1), m.b.weight.t()).unflatten(0, (-1, 6)),
    "folded": lambda m, x: modules(m, unfold(x)).unflatten(0, (-1, 3)).flatten(1, 2),
    "folded, interleaved": lambda m, x: (
        modules(m, x.reshape(-1, 3, 2, 5).transpose(0, 1).flatten(0, 1))
        .unflatten(0, (3, -1))
        .transpose(0, 1)
        .flatten(1, 2)
    ),
    "positions first": lambda m, x: modules(m, x.transpose(0, 1)).transpose(0, 1),
    "positions first, functions": lambda m, x: F.linear(m.a(x.transpose(0, 1)).relu(), m.b.weight, m.b.bias).transpose(
        0, 1
    ),
}


def score(way: Callable[[Twin, Tensor], Tensor], sizes: tuple[int, ...], **options: object) -> fk.Scores:
    model = Twin(way).double()
    units = fk.trace(model, X[:2])
    loader = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    return fk.score(model, loader, nn.CrossEntropyLoss(), units=units, projections=4, progress=False, **options)


@pytest.mark.parametrize("sizes", [(24,), (6, 11, 7)], ids=["one batch", "as many samples as positions"])
@pytest.mark.parametrize("name", WAYS)
def test_scores_are_those_of_the_plain_network(name: str, sizes: tuple[int, ...]) -> None:
    expected, found = score(modules, (24,)), score(WAYS[name], sizes)
    assert [g.name for g in found.units.groups] == [g.name for g in expected.units.groups] == ["a", "b"]
    for signal in ("wasserstein", "taylor"):
        for a, b in zip(expected.signals[signal], found.signals[signal], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, err_msg=signal)
    for a, b in zip(expected.means.values(), found.means.values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9)


def test_the_paper_taps_what_functions_return() -> None:
    expected = score(modules, (24,), recipe="paper")
    found = score(WAYS["linear"], (5, 19), recipe="paper")
    for signal in ("wasserstein", "taylor"):
        for a, b in zip(expected.signals[signal], found.signals[signal], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, err_msg=signal)
    assert [str(t.sites[0]) for t in found.units.groups[0].outputs] == ["a.weight"]


def test_samples_that_meet_before_a_tap_are_refused() -> None:
    model = Twin(lambda m, x: m.b((m.a(x) + m.a(x).mean(0, keepdim=True))[:6].relu())[:1].expand(len(x), -1, -1))
    with pytest.raises(fk.InputError, match="folds samples together"):
        fk.score(model.double(), [(X, Y)], nn.CrossEntropyLoss(), progress=False)


def test_scores_of_heads() -> None:
    """U and R are heard at the input of the output projection, which torch's own class never calls."""
    torch.manual_seed(0)
    model = Block(lambda a, x: a(x, x, x)[0].mean(1, keepdim=True), batch_first=True).double()
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, 3).double())
    batch = (torch.randn(12, 5, WIDTH, dtype=torch.float64), torch.arange(12) % 3)
    scores = fk.score(model, [batch], nn.CrossEntropyLoss(), projections=8, progress=False)
    assert [(g.name, g.kind, g.units) for g in scores.units.groups] == [("attn", "head", HEADS)]
    weight, x = model.attn.out_proj.weight, batch[0]
    loss = nn.CrossEntropyLoss(reduction="none")(model(x), batch[1])
    parts = torch.stack([torch.autograd.grad(one, weight, retain_graph=True)[0] * weight for one in loss])
    per_head = parts.reshape(12, WIDTH, HEADS, -1).sum(dim=(1, 3)).abs().sum(0)
    assert scores.signals["taylor"][0] == pytest.approx(per_head.detach().numpy() / 12, rel=1e-6)
    assert scores.signals["wasserstein"][0].min() > 0
    assert type(model.attn) is nn.MultiheadAttention
