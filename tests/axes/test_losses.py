"""Labelled batches as example inputs: a loss that the model computes holds nothing but what it runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.axes.harness import Case, Net, check_exact, check_groups

Loss = Callable[[Tensor, Any], Tensor]
CLASSES, SOFT = torch.arange(4) % 3, torch.rand(4, 3, dtype=torch.float64)
MANY = torch.tensor([[0, 1, -1], [2, -1, 0], [1, 2, 0], [0, -1, -1]])
SIGNS = (SOFT > 0.5) * 2.0 - 1

LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "cross entropy": (F.cross_entropy, CLASSES),
    "cross entropy, none": (lambda x, y: F.cross_entropy(x, y, reduction="none"), CLASSES),
    "cross entropy, weighted and smoothed": (
        lambda x, y: F.cross_entropy(x, y, weight=SOFT[0], label_smoothing=0.1, ignore_index=1),
        CLASSES,
    ),
    "cross entropy of shares": (F.cross_entropy, SOFT),
    "cross entropy of one sample": (lambda x, y: F.cross_entropy(x[0], y[0]), CLASSES),
    "multi margin": (F.multi_margin_loss, CLASSES),
    "multi label margin": (F.multilabel_margin_loss, MANY),
    "multi label soft margin": (F.multilabel_soft_margin_loss, SOFT),
    "binary cross entropy": (lambda x, y: F.binary_cross_entropy(x.sigmoid(), y), SOFT),
    "binary cross entropy with logits": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, weight=SOFT, pos_weight=SOFT[0]),
        SOFT,
    ),
    "mean squares": (F.mse_loss, SOFT),
    "mean squares, none": (lambda x, y: F.mse_loss(x, y, reduction="none"), SOFT),
    "absolute": (F.l1_loss, SOFT),
    "smooth absolute": (F.smooth_l1_loss, SOFT),
    "Huber": (F.huber_loss, SOFT),
    "soft margin": (F.soft_margin_loss, SIGNS),
    "hinge embedding": (F.hinge_embedding_loss, SIGNS),
    "cosine embedding": (lambda x, y: F.cosine_embedding_loss(x, y, SIGNS[:, 0]), SOFT),
    "triplet margin": (lambda x, y: F.triplet_margin_loss(x, y, SIGNS), SOFT),
    "Kullback and Leibler": (lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="batchmean"), SOFT),
    "Poisson": (F.poisson_nll_loss, SOFT),
    "Gauss": (lambda x, y: F.gaussian_nll_loss(x, y, SOFT), SOFT),
    "alignment": (
        lambda x, y: F.ctc_loss(x.log_softmax(-1)[:, None], y, torch.tensor([4]), torch.tensor([2])),
        torch.tensor([[1, 2]]),
    ),
}


def labelled(loss: Loss) -> Callable[..., Any]:
    def run(m: Net, x: Tensor, labels: Tensor | None = None) -> Any:
        made = m.b(m.a(x).relu())
        return made if labels is None else (loss(made, labels), made)

    return run


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_no_operator_without_a_rule(name: str) -> None:
    loss, labels = LOSSES[name]
    case = Case(
        lambda: Net(labelled(loss), a=nn.Linear(5, 8), b=nn.Linear(8, 3)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        inputs=lambda: (torch.randn(4, 5), labels),
    )
    units = check_groups(case)
    assert not any("without a rule" in note for note in units.notes)
    check_exact(case)


def test_a_loss_of_places() -> None:
    """`[N, C, H, W]` against `[N, H, W]`."""
    case = Case(
        lambda: Net(labelled(F.cross_entropy), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 3, 1)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
        inputs=lambda: (torch.randn(2, 3, 4, 4), torch.arange(32).reshape(2, 4, 4) % 3),
    )
    assert not any("without a rule" in note for note in check_groups(case).notes)
    check_exact(case)


def test_a_loss_between_streams() -> None:
    """Its mean would be over fewer of them; without a mean, position by position, they go together."""

    def net(reduction: str) -> Net:
        def run(m: Net, x: Tensor) -> Tensor:
            a, b = m.a(x), m.b(x)
            compared = F.smooth_l1_loss(a, b, reduction=reduction)
            return m.c(a) + m.c(b) * compared if reduction == "mean" else m.c(compared)

        torch.manual_seed(0)
        return Net(run, a=nn.Linear(5, 8), b=nn.Linear(5, 8), c=nn.Linear(8, 2)).double()

    x = torch.randn(4, 5, dtype=torch.float64)
    assert [g.name for g in fk.trace(net("none"), x).groups] == ["a"]
    with pytest.raises(fk.InputError, match="smooth_l1_loss runs over it"):
        fk.trace(net("mean"), x)
