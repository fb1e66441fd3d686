"""Sequential compensation against refits made by other means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from fairkern import compact, compensate
from fairkern.compensate import Compensation, fit
from fairkern.compensate.refit import refit
from fairkern.model.replacements import MultiheadAttention
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.axes.harness import Net
from tests.compensate.test_corrections import CONSUMERS, Y, double, images, scored
from tests.heads import HEADS, WIDTH


def sequential(model: nn.Module, scores: fk.Scores, plan: fk.Plan, loader: list, ridge: float = 1e-13) -> nn.Module:
    found = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, ridge)
    small = compact.apply(model, plan)
    compensate.fold(small, plan, refit(model, plan, scores, found, loader, ridge))
    return small


def chain() -> tuple[nn.Module, Tensor]:
    layers = {"a": nn.Linear(5, 9), "b": nn.Linear(9, 8), "c": nn.Linear(8, 3)}
    model = double(Net(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))), **layers))
    return model, torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_every_consumer_is_fitted_on_what_it_reads_in_the_cut_model() -> None:
    model, x = chain()
    scores = scored(model, x)
    plan = build(scores.units, [np.array([0, 4, 7, 8]), np.array([1, 2, 3])])
    small = sequential(model, scores, plan, [(x, Y)])
    with torch.no_grad():
        read, now = torch.relu(model.a(x)), torch.relu(small.a(x))
        then, later = torch.relu(model.b(read)), torch.relu(small.b(now))
        for before, after, act, reads in ((model.b, small.b, read, now), (model.c, small.c, then, later)):
            wanted = before(act).numpy()
            if after is small.b:
                wanted = np.delete(wanted, [1, 2, 3], 1)
            design = np.hstack([reads.numpy(), np.ones((48, 1))])
            fit = np.linalg.lstsq(design, wanted, rcond=None)[0]
            np.testing.assert_allclose(after(reads).numpy(), design @ fit, rtol=1e-5, atol=1e-7)


def test_the_output_is_nearer_than_in_one_shot() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 12, 3, padding=1), *(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))]
    model = double(
        Net(
            lambda m, x: m.head(m.d(torch.relu(m.c(torch.relu(m.b(torch.relu(m.a(x))))))).mean((2, 3))),
            **dict(zip("abcd", layers, strict=True)), head=nn.Linear(12, 3),
        )
    )  # fmt: skip
    x = images()
    scores = scored(model, x, (20, 28))
    plan = scores.plan(keep_params=0.4)
    loader = [(x[:20], Y[:20]), (x[20:], Y[20:])]
    once = fk.apply(model, plan, compensate="least_squares", scores=scores)
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=loader)
    with torch.no_grad():
        one, refitted = (F.mse_loss(m(x), model(x)) for m in (once, small))
    assert refitted < one


@pytest.mark.parametrize("name", [name for name in CONSUMERS if name != "recurrent"])
def test_a_unit_that_others_tell_is_not_missed(name: str) -> None:
    model, x = CONSUMERS[name](), images()
    scores = scored(model, x)
    removed = [np.array([5] if g.name == "a" else [], dtype=np.int64) for g in scores.units.groups]
    small = sequential(model, scores, build(scores.units, removed), [(x[:10], Y[:10]), (x[10:], Y[10:])])
    with torch.no_grad():
        assert float((model(x) - small(x)).abs().max()) < 1e-5 * float(model(x).abs().max())


def test_layers_that_lose_nothing_are_refitted_too() -> None:
    """Behind a layer norm no input goes, yet what arrives there differs: head and bias are those of the best fit."""
    layers = {"a": nn.Linear(5, 16), "b": nn.Linear(16, 6), "norm": nn.LayerNorm(6), "head": nn.Linear(6, 3)}
    model = double(Net(lambda m, x: m.head(m.norm(m.b(torch.relu(m.a(x))))), **layers))
    x = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scores = scored(model, x)
    assert [g.name for g in scores.units.groups] == ["a"]
    small = sequential(model, scores, build(scores.units, [np.arange(11)]), [(x, Y)])
    with torch.no_grad():
        reads = small.norm(small.b(torch.relu(small.a(x)))).numpy()
        design = np.hstack([reads, np.ones((48, 1))])
        fit = design @ np.linalg.lstsq(design, model(x).numpy(), rcond=None)[0]
        np.testing.assert_allclose(small(x).numpy(), fit, rtol=1e-5, atol=1e-7)
    assert not torch.equal(small.head.weight, model.head.weight)


def test_tied_and_computed_weights_stay_as_they_are() -> None:
    layers = {
        "a": nn.Linear(5, 16),
        "b": nn.Linear(16, 6),
        "norm": nn.LayerNorm(6),
        "head": nn.Linear(6, 6),
        "tied": nn.Linear(6, 6),
    }
    model = double(Net(lambda m, x: m.tied(m.head(m.norm(m.b(torch.relu(m.a(x)))))), **layers))
    model.tied.weight = model.head.weight
    x = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scores = scored(model, x)
    small = sequential(model, scores, build(scores.units, [np.arange(11)]), [(x, Y)])
    assert torch.equal(small.head.weight, model.head.weight)
    assert small.tied.weight is small.head.weight


class Attention(nn.Module):
    """Queries, keys and values are layers of their own, behind a norm that holds the width of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.a, self.b, self.norm = 2, nn.Linear(5, 16), nn.Linear(16, 6), nn.LayerNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.out, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(torch.relu(self.a(x))))
        q, k, v = (m(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.head(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def branches() -> nn.Module:
    """Two layers read one tap, one of them in two groups; what they give is flattened, and one weight reads twice."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        x = torch.relu(m.flat((m.b(x) + m.c(x)).flatten(1)))
        return m.head(torch.relu(m.twice(torch.relu(m.twice(x)))))

    layers = {"a": nn.Conv2d(2, 8, 3), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(8, 4, 1, groups=2)}
    return Net(run, **layers, flat=nn.Linear(4 * 16, 6), twice=nn.Linear(6, 6), head=nn.Linear(6, 3))


# name -> model, input, systems of the one-shot fit, and of the walk
SYSTEMS: dict[str, tuple[Callable[[], nn.Module], Tensor, int, int]] = {
    "chain": (lambda: chain()[0], torch.randn(48, 5), 2, 1),  # nothing has changed where b reads
    "attention": (Attention, torch.randn(48, 7, 5), 3, 3),  # b, out, head; then one for q, k and v, out, head
    "branches": (branches, images(), 6, 3),  # b, both groups of c, flat, twice, head; then flat, twice, head
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_system_is_solved_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, x, once, walked = SYSTEMS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), x.double()
    scores = scored(model, x, (20, 28))
    plan = build(scores.units, random_removal(scores.units, 0.4, seed=1))
    assert all(g.removed.size for g in plan.groups)
    solved: list[bytes] = []
    plain = fit.solve

    def counted(inner: Tensor, cross: Tensor, ridge: float) -> tuple[Tensor, float]:
        solved.append(inner.numpy().tobytes())
        return plain(inner, cross, ridge)

    monkeypatch.setattr(fit, "solve", counted)
    fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert len(set(solved)) == len(solved) == once
    solved.clear()
    loader = [(x[:20], Y[:20]), (x[20:], Y[20:])]
    fk.apply(model, plan, compensate="sequential", scores=scores, loader=loader)
    assert len(set(solved)) == len(solved) == once + walked


@pytest.mark.parametrize("name", ["chain", "attention"])
def test_one_batch_at_a_time_gives_the_same(name: str) -> None:
    """Where both models are given the same, walking on together and going again for every tap are one."""
    make, x, _, _ = SYSTEMS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), x.double()
    scores = scored(model, x, (20, 28))
    plan = build(scores.units, random_removal(scores.units, 0.4, seed=1))
    found = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES)
    loader = [(x[:20], Y[:20]), (x[20:], Y[20:])]
    together, apart = refit(model, plan, scores, found, loader), refit(model, plan, scores, found, loader, now=loader)
    for one, other in zip(together, apart, strict=True):
        assert one.axis == other.axis
        assert (one.weight is None) is (other.weight is None)
        assert one.weight is None or torch.equal(one.weight, other.weight)
        assert one.bias is None or torch.equal(one.bias, other.bias)


def test_a_part_behind_others_that_were_cut() -> None:
    """What arrives there is given: the fit gives back, from that, what the part computed of what arrived before."""
    model, _ = chain()
    before = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    now = before + 0.3 * torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = scored(model, before)
    plan = build(scores.units, [np.array([0, 4, 7, 8]), np.array([1, 2, 3])])
    found = compensate.corrections(model, plan, scores, Compensation.LEAST_SQUARES, 1e-13)
    small = compact.apply(model, plan)
    batches = [[(x[:20], Y[:20]), (x[20:], Y[20:])] for x in (before, now)]
    compensate.fold(small, plan, refit(model, plan, scores, found, batches[0], 1e-13, now=batches[1]))
    with torch.no_grad():
        wanted = np.delete(model.a(before).numpy(), [0, 4, 7, 8], 1)
        design = np.hstack([now.numpy(), np.ones((48, 1))])
        fitted = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        np.testing.assert_allclose(small.a(now).numpy(), fitted, rtol=1e-5, atol=1e-7)
    for given in ([], batches[0][:1]):
        with pytest.raises(fk.InputError, match="not given as many batches"):
            refit(model, plan, scores, found, batches[0], now=given)


def test_models_and_biases_stay_consistent() -> None:
    """The model is left as it was; a consumer whose outputs are cut as well gets a bias of what stays."""
    model = double(
        Net(
            lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3))),
            a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(8, 6, 3, bias=False), c=nn.Linear(6, 3),
        )
    )  # fmt: skip
    x = images()
    scores = scored(model, x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    plan = build(scores.units, [np.array([0, 3]), np.array([1, 4])])
    small = fk.apply(model, plan, compensate="sequential", scores=scores, loader=[(x, Y)])
    assert small.b.bias.shape == (4,)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.b.bias is None


def test_what_is_missing_is_said() -> None:
    model, x = chain()
    scores = scored(model, x)
    plan = scores.plan(keep_params=0.6)
    for options, message in (
        ({}, "none was given"),
        ({"loader": iter([(x, Y)])}, "iterated once only"),
        ({"loader": [(x, Y)], "inplace": True}, "inplace=True"),
        ({"loader": []}, "yields no batch"),
    ):
        with pytest.raises(fk.InputError, match=message):
            fk.apply(model, plan, compensate="sequential", scores=scores, **options)


def test_what_is_not_finite_ends_it() -> None:
    model, x = chain()
    scores = scored(model, x)
    with pytest.raises(fk.NonFiniteError, match="NaN or Inf"):
        fk.apply(
            model, scores.plan(keep_params=0.6), compensate="sequential", scores=scores, loader=[(x * torch.nan, Y)]
        )


def test_sequential_compensation() -> None:
    """What is measured again after every step is heard at the output projections as well."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True), 2)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(5 * WIDTH, 3)).double()
    loader = [(torch.randn(12, 5, WIDTH, dtype=torch.float64), torch.arange(12) % 3) for _ in range(2)]
    small, report = fk.prune(
        model, loader, nn.CrossEntropyLoss(), keep_params=0.5, compensate="sequential", progress=False
    )
    assert report.choices["not_compensated"] == {}
    assert small(loader[0][0]).isfinite().all()
    assert any(isinstance(m, MultiheadAttention) for m in small.modules())
