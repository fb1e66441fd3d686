"""torch-pruning's own pruner with our scores as its importance, held against our plans."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fairkern as fk

pytest.importorskip("torch_pruning")

import torch_pruning as tp

from fairkern.integrations.torch_pruning import ScoreImportance

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
LOADER = [(X[:12] + Y[:12, None, None, None], Y[:12]), (X[12:] + Y[12:, None, None, None], Y[12:])]


def vgg() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Residual(nn.Module):
    """A stream that two layers write to, and a concatenation of two branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner, self.back = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head(torch.cat([self.left(x).relu(), self.right(x).tanh()], 1).mean((2, 3)))


def scored(model: nn.Module, **options: Any) -> fk.Scores:
    return fk.score(model, LOADER, F.cross_entropy, progress=False, **options)


def pruned(model: nn.Module, importance: Any, head: nn.Module, **options: Any) -> nn.Module:
    """What torch-pruning leaves of a model, which it cuts in place."""
    pruner = tp.pruner.BasePruner(
        model, X[:1], importance=importance, ignored_layers=[head], **{"pruning_ratio": 0.5, **options}
    )
    pruner.step()
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("signal", ["wasserstein", "taylor", "residual"])
@pytest.mark.parametrize("make", [vgg, Residual])
def test_its_pruner_removes_the_units_with_our_lowest_scores(make: Any, signal: str) -> None:
    model = make()
    scores = scored(model, gram=True)
    kinds = {g.kind for g in scores.units.groups}
    plan = scores.plan(drop=dict.fromkeys(kinds, 4), removal=signal, allocation="uniform")
    ours = fk.apply(model, plan)
    for group in plan.groups:  # by the definition
        values = scores.signals[signal][[g.name for g in scores.units.groups].index(group.name)]
        assert sorted(np.argsort(values, kind="stable")[:4].tolist()) == group.removed.tolist()
    importance = ScoreImportance(model, scores, signal)
    theirs = pruned(model, importance, next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)))
    assert same(theirs, ours)
    assert torch.equal(theirs(X), ours(X))
    assert importance.left == {}


def test_without_a_signal_it_takes_the_best_there_is() -> None:
    for options, expected in (({"gram": True}, "residual"), ({}, "wasserstein"), ({"class_of": False}, "taylor")):
        model = vgg()
        scores = scored(model, **options)
        other = copy.deepcopy(model)
        assert same(
            pruned(model, ScoreImportance(model, scores), model[-1]),
            pruned(other, ScoreImportance(other, scores, expected), other[-1]),
        )


def test_layers_are_held_against_each_other_by_the_signal() -> None:
    model = vgg()
    scores = scored(model)
    pruned(model, ScoreImportance(model, scores, "taylor"), model[-1], global_pruning=True, pruning_ratio=0.25)
    everything = np.concatenate(scores.signals["taylor"])
    gone = np.sort(everything)[:6]  # of 24 units
    left = [8 - int((values <= gone[-1]).sum()) for values in scores.signals["taylor"]]
    assert [model[0].out_channels, model[4].out_channels, model[9].out_features] == left


def test_a_function_of_a_group_and_units_at_random() -> None:
    model = vgg()
    scores = scored(model)
    weight = model[0].weight.detach().clone()
    pruned(model, ScoreImportance(model, scores, lambda group: np.arange(group.total)[::-1].copy()), model[-1])
    assert torch.equal(model[0].weight, weight[:4])  # the last four score lowest
    assert pruned(other := vgg(), ScoreImportance(other, scores, "random"), other[-1])[0].out_channels == 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Linear(3, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


def test_heads_go_as_wholes_and_what_stays_has_a_reason() -> None:
    model = Attention()
    scores = scored(model)
    ours = fk.apply(model, scores.plan(drop={"head": 2}, removal="taylor", allocation="uniform"))
    importance = ScoreImportance(model, scores, "taylor")
    theirs = pruned(
        model, importance, model.head, num_heads={model.q: 4, model.k: 4, model.v: 4}, prune_num_heads=True,
        prune_head_dims=False, head_pruning_ratio=0.5,
    )  # fmt: skip
    assert same(theirs, ours)
    assert list(importance.left) == ["embed"]
    assert "layer_norm" in importance.left["embed"] or "norm" in importance.left["embed"]


def test_scores_of_the_uncut_model_are_refused_after_a_step() -> None:
    model = vgg()
    pruner = tp.pruner.BasePruner(
        model, X[:1], importance=ScoreImportance(model, scored(model)), ignored_layers=[model[-1]], iterative_steps=2,
        pruning_ratio=0.5,
    )  # fmt: skip
    pruner.step()
    assert model[0].out_channels == 6
    with pytest.raises(fk.InputError, match=r"before it was cut.*score this model"):
        pruner.step()
    pruner.current_step -= 1
    pruner.importance = ScoreImportance(model, scored(model))
    pruner.step()
    assert model[0].out_channels == 4


def test_bad_inputs() -> None:
    model = vgg()
    scores = scored(model)
    with pytest.raises(fk.InputError, match="of another model"):
        ScoreImportance(Residual(), scores)
    with pytest.raises(fk.InputError, match="scores"):
        ScoreImportance(model, scores.plan(keep_params=0.5))  # type: ignore[arg-type]
    with pytest.raises(fk.InputError, match="model"):
        ScoreImportance("model", scores)  # type: ignore[arg-type]
    with pytest.raises(fk.InputError, match="signal='residual' is not among"):
        ScoreImportance(model, scores, "residual")
