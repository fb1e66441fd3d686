"""U and R of experts that are modules of a list, however the list is called."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

import fairkern as fk
from bench.zoo.mixtures import Compared, Dense, OneHot
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
