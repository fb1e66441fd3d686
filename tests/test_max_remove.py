"""Scores that are put in order as far as plans may go: the same plans, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.capture import orders

DATA = [(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)]
LOSS = nn.functional.cross_entropy


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)).eval()


def score(**more: Any) -> fk.Scores:
    return fk.score(model(), DATA, LOSS, gram=True, progress=False, **more)


def test_plans_within_the_share_are_those_of_the_whole_order() -> None:
    whole, some = score(), score(max_remove=0.4)
    for keep in (0.95, 0.7, 0.6):
        a, b = (scores.plan(keep_params=keep, max_remove=0.4, removal="residual") for scores in (whole, some))
        for x, y in zip(a.groups, b.groups, strict=True):
            np.testing.assert_array_equal(x.removed, y.removed)
    for exact, part in zip(whole.signals["residual"], some.signals["residual"], strict=True):
        first = np.argsort(exact, kind="stable")[: int(0.4 * len(exact))]
        np.testing.assert_allclose(part[first], exact[first], rtol=1e-12)
        assert (part[np.setdiff1d(np.arange(len(part)), first)] > part[first].max()).all()


def test_plans_that_read_more_are_refused() -> None:
    some = score(max_remove=0.4)
    with pytest.raises(fk.InputError, match=r"max_remove=0.99, .*as far as 0.4"):
        some.plan(keep_params=0.7)
    with pytest.raises(fk.InputError, match="allocation='normalized' reads"):
        some.plan(keep_params=0.7, allocation="normalized", removal="residual", max_remove=0.3)
    with pytest.raises(fk.InputError, match="protect='residual' reads"):
        some.plan(tod=0.2, protect="residual")
    assert some.plan(keep_params=0.7, removal="taylor").groups
    for wrong in (0, 1.5, "half"):
        with pytest.raises(fk.InputError, match="max_remove"):
            score(max_remove=wrong)


def test_prune_asks_for_no_more_than_it_may_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[float] = set()
    plain = orders.solve

    def noted(*given: Any, most: float, **more: Any) -> Any:
        asked.add(most)
        return plain(*given, most=most, **more)

    def prune(**more: Any) -> fk.Report:
        return fk.prune(
            model(), DATA, LOSS, keep_params=0.8, max_remove=0.3, compensate="least_squares", progress=False, **more
        )[1]

    monkeypatch.setattr(orders, "solve", noted)
    prune()
    assert asked == {0.3}
    asked.clear()
    kept = prune(keep_scores=True)
    assert asked == {1.0}
    assert kept.scores is not None
    kept.scores.plan(keep_params=0.5)
