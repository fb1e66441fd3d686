"""Second-order saliency (the residual signal) against fits made from scratch, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import residual
from tests.axes.harness import Net

Y = torch.arange(60) % 3


def flat(n: int = 60) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def images(n: int = 60) -> Tensor:
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mlp(**more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 10), b=nn.Linear(10, 3), **more).double().eval()


def scored(model: nn.Module, x: Tensor, *sizes: int, **options: object) -> fk.Scores:
    units = fk.trace(model, x[:2])
    loader = list(zip(x.split(list(sizes or (60,))), Y.split(list(sizes or (60,))), strict=True))
    return fk.score(
        model, loader, nn.CrossEntropyLoss(), units=units, projections=4, gram=True, progress=False, **options
    )


def price(model: nn.Module, x: Tensor, y: Tensor, consumer: nn.Module, weight: np.ndarray) -> float:
    """What a unit of squared error at the consumer costs: the mean square of its output's gradient, per sample."""
    held: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        alias = inputs[0].view_as(inputs[0])  # what goes past the consumer does not count
        alias.retain_grad()
        held.append(alias)
        return alias

    with torch.enable_grad():
        handle = consumer.register_forward_pre_hook(keep)
        nn.functional.cross_entropy(model(x.clone().requires_grad_()), y, reduction="sum").backward()
        handle.remove()
    assert held[0].grad is not None
    return float(held[0].grad.square().sum()) / len(x) / float((weight**2).sum())


def lost(act: np.ndarray, weight: np.ndarray, gone: list[int], ridge: float) -> float:
    """Power of the output that a fit on the activations that stay cannot give back; ridge as added noise."""
    n = act.shape[1]
    covariance = np.cov(act.T, bias=True)
    noisy = covariance + ridge * np.trace(covariance) / n * np.eye(n)
    stays = [i for i in range(n) if i not in gone]
    left = noisy[np.ix_(gone, gone)]
    if stays:
        cross = noisy[np.ix_(stays, gone)]
        left = left - cross.T @ np.linalg.solve(noisy[np.ix_(stays, stays)], cross)
    rows = weight[:, gone]
    return float(np.trace(rows @ left @ rows.T))


def test_the_scores_are_what_each_step_adds() -> None:
    model, x = mlp(), flat()
    (values,) = scored(model, x).signals["residual"]
    with torch.no_grad():
        act = torch.relu(model.a(x)).numpy()
    order = np.argsort(values, kind="stable").tolist()
    weight = model.b.weight.detach().numpy()
    each = price(model, x, Y, model.b, weight)
    costs = [each * lost(act, weight, order[:k], 1e-4) for k in range(1, 11)]
    np.testing.assert_allclose(values[order], np.maximum.accumulate(np.diff(costs, prepend=0.0)), rtol=1e-6, atol=1e-12)
    cheapest = min(range(10), key=lambda u: lost(act, weight, [u], 1e-4))
    assert order[0] == cheapest


def test_what_another_unit_tells_goes_first() -> None:
    """`a` row 7 repeats row 2: one of the two goes first for next to nothing, the other then has a price."""
    model, x = mlp(), flat()
    with torch.no_grad():
        model.a.weight[7], model.a.bias[7] = model.a.weight[2], model.a.bias[2]
        model.b.weight[:, [2, 7]] *= 3
    (values,) = scored(model, x).signals["residual"]
    first = int(np.argmin(values))
    assert first in (2, 7)
    assert values[first] < 1e-3 * values[9 - first]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, flat),
    "residual stream, flatten": (
        lambda: Net(
            lambda m, x: m.d(torch.relu(s := m.a(x) + m.c(torch.relu(m.b(m.a(x))))).flatten(1) + 0 * s.sum()),
            a=nn.Conv2d(2, 6, 3), b=nn.Conv2d(6, 8, 1), c=nn.Conv2d(8, 6, 1), d=nn.Linear(6 * 16, 3),
        ),
        images,
    ),
    "grouped": (
        lambda: Net(
            lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))),
            a=nn.Conv2d(2, 24, 3), b=nn.Conv2d(24, 8, 3, groups=2), c=nn.Linear(8, 3),
        ),
        images,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_do_not_matter_and_the_currency_is_the_loss(name: str) -> None:
    build, data = NETWORKS[name]
    torch.manual_seed(0)
    model, x = build().double().eval(), data()
    whole, parts = scored(model, x), scored(model, x, 7, 50, 3)
    assert all(len(v) == g.units for v, g in zip(whole.signals["residual"], whole.units.groups, strict=True))
    for a, b in zip(whole.signals["residual"], parts.signals["residual"], strict=True):
        assert (a >= 0).all()
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    double = fk.score(
        model, [(x, Y)], lambda out, y: 2 * nn.functional.cross_entropy(out, y), units=whole.units, gram=True,
        progress=False,
    )  # fmt: skip
    for a, b in zip(whole.signals["residual"], double.signals["residual"], strict=True):
        np.testing.assert_allclose(4 * a, b, rtol=1e-6, atol=1e-12)


def test_without_second_order_the_rise_of_the_loss_is_what_the_scores_say() -> None:
    """A loss that is a square has its gradient for curvature: the scores add up to twice the rise, to the ridge."""
    model, x = mlp(), flat(1000).repeat(2, 1)
    noise = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    target = model(x).detach() + torch.cat([noise, -noise])
    units = fk.trace(model, x[:2])
    loader = [(x, (target, torch.arange(2000) % 3))]

    def half_square(out: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (out - target[0]).square().sum(1).mean()

    scores = fk.score(
        model, loader, half_square, units=units, class_of=lambda b: b[1][1], gram=True, projections=4, progress=False
    )
    plan = scores.plan(keep_params=0.6)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    with torch.no_grad():
        rise = float(half_square(small(x), loader[0][1]) - half_square(model(x), loader[0][1]))
    (values,) = scores.signals["residual"]
    gone = plan.groups[0].removed
    assert float(values[gone].sum()) / 2 == pytest.approx(rise, rel=0.1)


def test_a_grouped_convolution_makes_up_within_its_groups() -> None:
    """Unit u holds inputs u and u + 12 of two groups; each is told by inputs of its own group alone."""
    build, data = NETWORKS["grouped"]
    torch.manual_seed(0)
    model, x = build().double().eval(), data()
    scores = scored(model, x)
    g = [group.name for group in scores.units.groups].index("a")
    first = int(np.argmin(scores.signals["residual"][g]))
    with torch.no_grad():
        act = torch.relu(model.a(x)).movedim(1, -1).flatten(0, -2).numpy()
    weight = model.b.weight.detach().numpy()
    total = 0.0
    for k in range(2):
        mine = act[:, 12 * k : 12 * k + 12]
        rows = weight[4 * k : 4 * k + 4].transpose(0, 2, 3, 1).reshape(-1, 12)
        total += lost(mine, rows, [first], 1e-4)
    total *= price(model, x, Y, model.b, weight)
    assert scores.signals["residual"][g][first] == pytest.approx(total, rel=0.02)  # one ridge for both groups


def test_without_moments_there_is_no_such_signal() -> None:
    model, x = mlp(), flat()
    scores = fk.score(model, [(x, Y)], nn.CrossEntropyLoss(), projections=4, progress=False)
    assert sorted(scores.signals) == ["l1", "l2", "taylor", "wasserstein"]
    for signal in ("residual", "activation"):
        with pytest.raises(fk.InputError, match=rf"'{signal}' is not among .*, or score with gram=True"):
            scores.plan(keep_params=0.5, removal=signal)


def test_the_ridge_grows_where_rounding_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one direction outweighs all others, sums in float32 round by more than the ridge."""
    seen: list[list[Tensor]] = []
    plain = residual.eliminate

    def refused_twice(views: Any, **more: Any) -> Any:
        seen.append([view.covariance.clone() for view in views])
        if len(seen) < 3:
            raise fk.NonFiniteError("not definite")
        return plain(views, **more)

    monkeypatch.setattr(residual, "eliminate", refused_twice)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    data = [(torch.randn(32, 4), torch.arange(32) % 2)]
    scores = fk.score(net, data, nn.functional.cross_entropy, gram=True, progress=False)
    added = [(b[0] - a[0]).diagonal().mean() for a, b in itertools.pairwise(seen)]
    assert float(added[1] / added[0]) == pytest.approx(10)
    assert np.isfinite(scores.signals["residual"][0]).all()


def test_a_covariance_that_is_not_finite_is_no_matter_of_the_ridge() -> None:
    model, x = mlp(), flat()
    scores = scored(model, x)
    (job,) = residual.jobs(scores.units)
    (name,) = job.moments
    kept = scores.moments[name]
    broken = dataclasses.replace(kept, gram=torch.full_like(kept.gram, torch.nan))
    with pytest.raises(fk.NonFiniteError):
        residual.solve(job, model, scores.units, {name: broken}, {name: 1.0})


def test_units_that_hardly_answer_have_a_residual() -> None:
    """Activations whose squares are too small for float32: a covariance of rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    with torch.no_grad():
        model[0].weight *= 1e-23
        model[0].bias.zero_()
    data = [(torch.randn(9, 6), torch.arange(9) % 3)]
    found = fk.score(model, data, F.cross_entropy, gram=True, progress=False)
    assert all(np.isfinite(values).all() for values in found.signals["residual"])
