"""U and R of experts that are modules of a list, however the list is called."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fairkern as fk
from bench.zoo.mixtures import Compared, Dense, Mixture, OneHot
from tests.listed import UNEVEN, X, batches, experts_of, net


def test_ways_of_writing_it_give_the_same_scores() -> None:
    """What an expert adds to its tokens: of tokens that are looked up, and with weights of zero for all others."""
    models = [net(kind, sizes=UNEVEN) for kind in (Dense, OneHot, Compared)]
    for other in models[1:]:
        other.load_state_dict(models[0].state_dict())
    found = []
    for model in models:
        model.double()
        data = [(x.double(), y) for x, y in batches()]
        units = fk.trace(model, X.double())
        scores = fk.score(model, data, F.cross_entropy, units=units, gram=True, progress=False)
        found.append([scores.signals[s][g] for s in ("wasserstein", "taylor") for g in experts_of(units)])
        power = [scores.moments[f"layers.0.experts:expert[{e}]"].gram.sum() for e in range(5)]
        assert all(p > 0 for p in power)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_taylor_is_what_the_loss_loses_with_an_experts_output() -> None:
    """Σ over samples of |Σ gate · output · ∂L/∂(gate · output)|, against a gate that is scaled."""
    model = net(Dense).double()
    x, y = batches(1)[0]
    x = x.double()
    units = fk.trace(model, X.double())
    scores = fk.score(model, [(x, y)], F.cross_entropy, units=units, progress=False)
    layer = model.layers[1]
    scale = torch.ones(16, 4, dtype=torch.float64, requires_grad=True)
    hooks = [
        expert.register_forward_hook(lambda m, a, out, e=e: out * scale[:, e, None, None])
        for e, expert in enumerate(layer.experts)
    ]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), scale)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(scores.signals["taylor"][experts_of(units)[1]], gradient.abs().mean(0), rtol=1e-9)


def test_the_papers_recipe_hears_whole_experts() -> None:
    model = net(OneHot)
    units = fk.trace(model, X)
    default, paper = (
        fk.score(
            model, batches(), F.cross_entropy, units=units, gram=True, recipe=r, reduction="signed", progress=False
        )
        for r in ("default", "paper")
    )
    for g in experts_of(units):
        for name in ("wasserstein", "taylor", "residual"):
            np.testing.assert_array_equal(default.signals[name][g], paper.signals[name][g])


def test_experts_without_a_token_are_silent() -> None:
    model = net(OneHot)
    with torch.no_grad():
        model.layers[0].router.weight[2:] = 0
        model.layers[0].router.weight[:2] *= 30
        model.embed.bias += 1
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    first = experts_of(units)[0]
    assert all(np.isfinite(scores.signals[name][first]).all() for name in scores.signals)


class Added(Mixture):
    """What is added to a token of an expert's answer `h`, by the expert's weight `w` for it and another number `v`;
    `everywhere`: the same from answers to all tokens."""

    everywhere = False
    ways: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.chosen(flat)
        other = self.router(flat).sigmoid()
        outs = [torch.zeros_like(flat) for _ in self.ways]
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(index == e)
            h = expert(x).reshape(flat.shape)[token] if self.everywhere else expert(flat[token])
            for out, way in zip(outs, self.ways, strict=True):
                out.index_add_(0, token, way(h, weights[token, slot, None], other[token, e, None]))
        return torch.stack([outs[0], *(out.tanh() for out in outs[1:])]).sum(0).reshape(x.shape)


WAYS = {
    "two weights": (lambda h, w, v: h * w, lambda h, w, v: h * v),
    "plain, then weighted": (lambda h, w, v: h, lambda h, w, v: h * w),
    "weighted, then plain": (lambda h, w, v: h * w, lambda h, w, v: h.reshape(1, *h.shape)[0]),
    "weighted in its dtype": (lambda h, w, v: h * w.to(h.dtype),),
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_an_answer_that_is_read_in_several_ways(ways: tuple[Callable[..., Tensor], ...]) -> None:
    """The loss is the model's own, and R what a scale of the answer says of it, also where memory is counted."""
    kind = type("AddedSo", (Added,), {"ways": ways})
    model = net(kind).double()
    x, y = batches(1)[0]
    x = x.double()
    units = fk.trace(model, X.double())
    found = [
        fk.score(model, [(x, y)], F.cross_entropy, units=units, gram=True, memory_budget=budget, progress=False)
        for budget in (None, 10**8)
    ]
    for number, layer in enumerate(model.layers):
        layer.everywhere = True
        scale = torch.ones(16, 4, dtype=torch.float64, requires_grad=True)
        hooks = [
            expert.register_forward_hook(lambda m, a, out, own=own: out * own[:, None, None])
            for own, expert in zip(scale.unbind(1), layer.experts, strict=True)
        ]
        loss = F.cross_entropy(model(x), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, scale)
        for hook in hooks:
            hook.remove()
        layer.everywhere = False
        for scores in found:
            assert scores.provenance["loss"] == pytest.approx(float(loss.detach()) / 16, rel=1e-12)
            signal = scores.signals["taylor"][experts_of(units)[number]]
            np.testing.assert_allclose(signal, gradient.abs().mean(0), rtol=1e-9)


class Halved(OneHot):
    """Tokens whose number is a multiple of three are given twice to each of their experts, with parts of the weight."""

    twice = True

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.chosen(flat)
        out = torch.zeros_like(flat)
        for e in range(self.num_experts):
            token, slot = torch.where(index == e)
            weight = weights[token, slot]
            if self.twice:
                some = token % 3 == 0
                weight = torch.cat([torch.where(some, 0.3 * weight, weight), 0.7 * weight[some]])
                token = torch.cat([token, token[some]])
            out.index_add_(0, token, self.experts[e](flat[token]) * weight[:, None])
        return out.reshape(x.shape)


@pytest.mark.parametrize("budget", [None, 10**8])
def test_a_token_that_is_given_twice_counts_once(budget: int | None) -> None:
    """An expert that answers it twice, each time with a part of the weight, is one that answers once."""
    model = net(Halved).double()
    data = [(x.double(), y) for x, y in batches()]
    units = fk.trace(model, X.double())
    found = []
    for twice in (False, True):
        for layer in model.layers:
            layer.twice = twice
        found.append(
            fk.score(model, data, F.cross_entropy, units=units, gram=True, memory_budget=budget, progress=False)
        )
    once, again = found
    for name in ("wasserstein", "taylor", "residual"):
        for a, b in zip(once.signals[name], again.signals[name], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-15)
