"""Compensation against fits made by other means, and what it does where it can do little or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fairkern as fk
from fairkern import compact, compensate
from fairkern.capture import keeping
from fairkern.capture.keeping import KeptMoments
from fairkern.compensate import Compensation
from fairkern.compensate.correction import _add
from fairkern.plans.build import build
from tests.axes.harness import Net

Y = torch.arange(48) % 3


def images(n: int = 48, size: int = 6) -> Tensor:
    return torch.randn(n, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * 0.5)
    return model


def scored(model: nn.Module, x: Tensor, sizes: Sequence[int] = (48,), **options: object) -> fk.Scores:
    units = fk.trace(model, x[:2])
    loader = list(zip(x.split(list(sizes)), Y.split(list(sizes)), strict=True))
    return fk.score(
        model,
        loader,
        lambda out, y: F.cross_entropy(out.flatten(2).mean(2) if out.ndim > 2 else out, y),
        units=units,
        projections=4,
        gram=True,
        progress=False,
        **options,
    )


def cut(
    model: nn.Module,
    scores: fk.Scores,
    group: str,
    units: Sequence[int],
    method: str = "least_squares",
    ridge: float = 1e-13,
) -> tuple[nn.Module, list[compensate.Correction]]:
    removed = [np.array(units if g.name == group else [], dtype=np.int64) for g in scores.units.groups]
    plan = build(scores.units, removed)
    found = compensate.corrections(model, plan, scores, Compensation(method), ridge)
    small = compact.apply(model, plan)
    compensate.fold(small, plan, found)
    return small, found


# name -> network whose unit 5 of group `a` is 2 · unit 1 − unit 3, so that nothing is lost with it
def dependent(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight[5] = 2 * layer.weight[1] - layer.weight[3]
        layer.bias[5] = 2 * layer.bias[1] - layer.bias[3]
    return layer


def net(run: Callable, a: nn.Module | None = None, **parts: nn.Module) -> nn.Module:
    model = double(Net(run, a=a or nn.Conv2d(2, 8, 3, padding=1), **parts))
    dependent(model.a)
    return model


CONSUMERS = {
    "convolution": lambda: net(lambda m, x: m.b(m.a(x)), b=nn.Conv2d(8, 3, 3, padding=1)),
    "strided, without bias": lambda: net(lambda m, x: m.b(m.a(x)), b=nn.Conv2d(8, 3, 2, stride=2, bias=False)),
    "transposed convolution": lambda: net(lambda m, x: m.b(m.a(x)), b=nn.ConvTranspose2d(8, 3, 2, stride=2)),
    "two consumers": lambda: net(
        lambda m, x: m.b(h := m.a(x)) + m.c(h), b=nn.Conv2d(8, 3, 1), c=nn.Conv2d(8, 3, 3, padding=1)
    ),
    "flattened": lambda: net(lambda m, x: m.b(m.a(x).flatten(1)), b=nn.Linear(8 * 36, 3)),
    "pooled": lambda: net(lambda m, x: m.b(m.a(x).mean((2, 3))), b=nn.Linear(8, 3, bias=False)),
    "with a second group beside it": lambda: net(
        lambda m, x: m.b(torch.cat([m.c(x), m.a(x)], 1)), c=nn.Conv2d(2, 4, 1), b=nn.Conv2d(12, 3, 1)
    ),
    "function without bias": lambda: net(
        lambda m, x: F.linear(m.a(x).movedim(1, -1), m.b.weight).movedim(-1, 1), b=nn.Linear(8, 3, bias=False)
    ),
    "linear": lambda: net(lambda m, x: m.b(m.a(x[:, :, 0, 0])), a=nn.Linear(2, 8), b=nn.Linear(8, 3)),
    "recurrent": lambda: net(
        lambda m, x: m.b(m.a(x.flatten(2).mT))[0][:, -1], a=nn.Linear(2, 8), b=nn.GRU(8, 3, batch_first=True)
    ),
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_unit_that_others_tell_is_not_missed(name: str) -> None:
    model, x = CONSUMERS[name](), images()
    small, found = cut(model, scored(model, x), "a", [5])
    assert all(c.weight is not None for c in found)
    assert max(c.unexplained for c in found) < 1e-9
    with torch.no_grad():
        assert float((model(x) - small(x)).abs().max()) < 1e-6 * float(model(x).abs().max())


def test_heads_are_told_by_heads() -> None:
    """A head whose values are another head's is taken over by it, position by position."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.qkv, self.out = 4, nn.Linear(5, 3 * 4 * 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, 3)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    model = double(Attention())
    with torch.no_grad():
        for rows in (model.qkv.weight.view(3, 4, 3, 5), model.qkv.bias.view(3, 4, 3)):
            rows[:, 2] = rows[:, 0]
    x = torch.randn(48, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    small, _ = cut(model, scored(model, x), "qkv", [2])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [(48,), (7, 40, 1)])
def test_least_squares_is_the_best_linear_fit(sizes: Sequence[int]) -> None:
    """`b` refitted by a solver of its own on the activations that stay gives the same weights and bias."""
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 9), b=nn.Linear(9, 3)))
    x = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gone = [0, 4, 7]
    small, (found,) = cut(model, scored(model, x, sizes), "a", gone)
    with torch.no_grad():
        act = torch.relu(model.a(x)).numpy()
        kept = np.delete(act, gone, 1)
        design = np.hstack([kept, np.ones((48, 1))])
        fit = np.linalg.lstsq(design, model.b(torch.from_numpy(act)).numpy(), rcond=None)[0]
        np.testing.assert_allclose(small.b.weight.numpy(), fit[:-1].T, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(small.b.bias.numpy(), fit[-1], rtol=1e-6, atol=1e-8)
        lost = act[:, gone] - design @ np.linalg.lstsq(design, act[:, gone], rcond=None)[0]
        spread = act[:, gone] - act[:, gone].mean(0)
    assert found.unexplained == pytest.approx((lost**2).sum() / (spread**2).sum(), rel=1e-6)


def test_without_intercept_it_is_the_best_fit_through_zero() -> None:
    model = double(
        Net(lambda m, x: F.linear(torch.relu(m.a(x)), m.b), a=nn.Linear(5, 9), b=nn.Parameter(torch.ones(3, 9)))
    )
    x = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    small, (found,) = cut(model, scored(model, x), "a", [1, 2])
    assert "without intercept" in found.note
    with torch.no_grad():
        act = torch.relu(model.a(x)).numpy()
        fit = np.linalg.lstsq(np.delete(act, [1, 2], 1), act @ model.b.numpy().T, rcond=None)[0]
        np.testing.assert_allclose(small(x).numpy(), np.delete(act, [1, 2], 1) @ fit, rtol=1e-6, atol=1e-8)


def test_a_grouped_convolution_mixes_within_its_groups() -> None:
    model = double(
        Net(
            lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
            a=nn.Conv2d(2, 24, 3),
            b=nn.Conv2d(24, 8, 3, groups=2),
            c=nn.Conv2d(8, 3, 1),
        )
    )
    x = images()
    small, found = cut(model, scored(model, x), "a", [1, 5, 6])
    (correction,) = [c for c in found if c.axis.tensor == "b.weight"]
    assert correction.weight is not None
    assert correction.weight.shape == small.b.weight.shape
    with torch.no_grad():
        act = torch.relu(model.a(x)).movedim(1, -1).flatten(0, -2).numpy()
    for g in range(2):
        mine = act[:, 12 * g : 12 * g + 12]
        design = np.hstack([np.delete(mine, [1, 5, 6], 1), np.ones((len(mine), 1))])
        mixing = np.linalg.lstsq(design, mine[:, [1, 5, 6]], rcond=None)[0][:-1].T
        rows = model.b.weight.detach().numpy()[4 * g : 4 * g + 4]
        expected = np.delete(rows, [1, 5, 6], 1) + np.einsum("orkl,ri->oikl", rows[:, [1, 5, 6]], mixing)
        np.testing.assert_allclose(small.b.weight.detach().numpy()[4 * g : 4 * g + 4], expected, rtol=1e-6, atol=1e-8)


def test_means_go_into_the_bias() -> None:
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 9), b=nn.Linear(9, 3)))
    x = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    small, _ = cut(model, scored(model, x), "a", [3, 8], "mean")
    with torch.no_grad():
        mean = torch.relu(model.a(x)).mean(0)[[3, 8]]
        torch.testing.assert_close(small.b.bias, model.b.bias + model.b.weight[:, [3, 8]] @ mean)
        assert torch.equal(small.b.weight, model.b.weight[:, [0, 1, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize("samples", [48, 4])
def test_dead_constant_and_dependent_units_and_few_samples(samples: int) -> None:
    model = double(Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 30), b=nn.Linear(30, 3)))
    with torch.no_grad():
        model.a.weight[:6] = 0
        model.a.bias[:3], model.a.bias[3:6] = -1.0, 2.0  # dead, constant
        model.a.weight[10], model.a.bias[10] = model.a.weight[11], model.a.bias[11]
    x = torch.randn(samples, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    units = fk.trace(model, x)
    scores = fk.score(
        model, [(x, torch.arange(samples) % 2)], nn.CrossEntropyLoss(), units=units, gram=True, progress=False
    )
    small, found = cut(model, scores, "a", [0, 3, 10, 20], ridge=1e-4)
    assert all(0 <= c.unexplained <= 1 for c in found)
    with torch.no_grad():
        assert torch.isfinite(small(x)).all()
        assert float((model(x) - small(x)).abs().max()) < 0.2 * float(model(x).abs().max())


def test_the_paper_recipe_keeps_moments_of_what_is_read() -> None:
    model, x = CONSUMERS["convolution"](), images()
    a, b = scored(model, x), scored(model, x, recipe="paper")
    assert list(a.moments) == list(b.moments)
    for name in a.moments:
        np.testing.assert_allclose(a.moments[name].gram, b.moments[name].gram, rtol=1e-12)


def test_moments_do_not_depend_on_batches_and_come_back_from_a_file(tmp_path: Path) -> None:
    model, x = CONSUMERS["flattened"](), images()
    whole, parts = scored(model, x), scored(model, x, (5, 43))
    parts.save(tmp_path / "scores")
    again = fk.Scores.load(tmp_path / "scores")
    for name, moments in parts.moments.items():
        np.testing.assert_allclose(whole.moments[name].gram, moments.gram, rtol=1e-12, atol=1e-12)
        back = again.moments[name]
        assert np.array_equal(back.gram, moments.gram)
        assert np.array_equal(back.total, moments.total)
        assert (back.count, back.per_unit) == (moments.count, moments.per_unit) == (48 * 36, 36)


def test_an_added_bias_survives_saving(tmp_path: Path) -> None:
    model, x = CONSUMERS["strided, without bias"](), images()
    scores = scored(model, x)
    plan = build(scores.units, [np.array([0, 5]) if g.name == "a" else np.array([], int) for g in scores.units.groups])
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert small.b.bias is not None
    assert model.b.bias is None
    fk.save_pruned(small, plan, tmp_path / "small")
    again = fk.load_pruned(CONSUMERS["strided, without bias"](), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


def test_tied_weights_stay_and_are_named() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.b(torch.relu(m.a(x))) + m.c(torch.relu(m.a(x)))

    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 3))
    model.c.weight = model.b.weight
    model = double(model)
    x = torch.randn(48, 5, dtype=torch.float64)
    _, found = cut(model, scored(model, x), "a", [1])
    assert [(c.weight, c.note) for c in found] == [(None, "b.weight and c.weight are one tensor")]


def test_inplace_gives_the_same() -> None:
    model, x = CONSUMERS["two consumers"](), images()
    scores = scored(model, x)
    plan = scores.plan(keep_params=0.6)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    fk.apply(model, plan, compensate="least_squares", scores=scores, inplace=True)
    for a, b in zip(small.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_prune_compensates_and_says_what_is_lost() -> None:
    model, x = CONSUMERS["convolution"](), images()
    loss = lambda out, y: F.cross_entropy(out.mean((2, 3)), y)  # noqa: E731
    small, report = fk.prune(model, [(x, Y)], loss, keep_params=0.6, progress=False)
    bare, _ = fk.prune(model, [(x, Y)], loss, keep_params=0.6, compensate="none", progress=False)
    (row,) = [row for row in report.groups if row["removed"]]
    assert 0 <= row["unexplained"] < 1
    assert "unexplained" in report.table()
    with torch.no_grad():
        assert (model(x) - small(x)).square().sum() < (model(x) - bare(x)).square().sum()


def test_what_is_missing_is_said() -> None:
    model, x = CONSUMERS["convolution"](), images()
    scores = scored(model, x)
    plan = scores.plan(keep_params=0.6)
    with pytest.raises(fk.InputError, match="pass scores="):
        fk.apply(model, plan, compensate="mean")
    with pytest.raises(fk.InputError, match="expected one of 'none', 'mean', 'least_squares'"):
        fk.apply(model, plan, compensate="most")
    bare = fk.score(
        model, [(x, Y)], lambda out, y: F.cross_entropy(out.mean((2, 3)), y), units=scores.units, progress=False
    )
    with pytest.raises(fk.InputError, match="gram=True"):
        fk.apply(model, plan, compensate="least_squares", scores=bare)
    paper = scored(model, x, recipe="paper")
    with pytest.raises(fk.InputError, match="recipe='default'"):
        fk.apply(model, plan, compensate="mean", scores=paper)
    other = CONSUMERS["pooled"]()
    with pytest.raises(fk.PlanMismatchError):
        fk.apply(model, plan, compensate="mean", scores=scored(other, x))


def spread(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())


def pooled(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("run", "consumer", "said"),
    [
        (spread, lambda: nn.ConvTranspose2d(6, 4, 2, groups=2), "cannot mix its inputs across"),
        (pooled, lambda: parametrizations.weight_norm(nn.Linear(6, 4), dim=1), "a parametrization computes the weight"),
    ],
    ids=["grouped transposed", "weight norm"],
)
def test_consumers_that_cannot_take_what_others_can(
    run: Callable[[Net, Tensor], Tensor], consumer: Callable[[], nn.Module], said: str
) -> None:
    model = double(Net(run, a=nn.Conv2d(2, 6, 3), b=consumer()))
    scores = scored(model, images())
    small, found = cut(model, scores, "a", [1])
    assert [c.weight for c in found] == [None]
    assert said in found[0].note
    gone = [np.array([1] if g.name == "a" else [], dtype=np.int64) for g in scores.units.groups]
    assert torch.equal(small(images(4)), compact.apply(model, build(scores.units, gone))(images(4)))


def test_a_layer_may_be_heard_before_and_after() -> None:
    """The paper's recipe listens to what the second layer returns, compensation to what it reads."""
    layers = {"a": nn.Conv2d(2, 8, 3), "b": nn.Conv2d(8, 6, 3), "c": nn.Linear(6, 3)}
    model = double(Net(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))), **layers))
    x = images()
    small, report = fk.prune(
        model, [(x, Y)], nn.CrossEntropyLoss(), keep_params=0.5, recipe="paper", allocation="tod", progress=False
    )
    assert report.choices["compensated"] > 0
    assert small(x).shape == (48, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_added_is_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    held = (torch.randn(5000, generator=generator) * 1e-3).to(dtype)
    more = torch.randn(5000, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    expected = (held.double() + more.double()).to(dtype)
    _add(held, more)
    assert torch.equal(held, expected)


def test_no_matrix_is_made_to_see_that_it_is_there(tmp_path: Path) -> None:
    kept = KeptMoments({"fc": keeping._File(tmp_path / "absent", None)})
    assert "fc" in kept
    assert "conv" not in kept
