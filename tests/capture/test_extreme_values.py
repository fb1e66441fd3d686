"""Activations and gradients whose squares float32 does not hold: the scores are those of ordinary ones, scaled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import moments
from fairkern.capture.moments import _HELD, squares_are_held
from fairkern.ops.gram.reference import holds_squares

LABELS = torch.arange(3).repeat(10)
X = torch.randn(30, 6, generator=torch.Generator().manual_seed(1)) + LABELS[:, None]


class Times(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def net(by: float = 1.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Its hidden activations are `by` times as large as those of the net of 1, and its outputs the same."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, 12), Times(by), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), Times(1 / by), nn.Linear(12, 3))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[3].bias.mul_(by)
    return model.eval().to(dtype)


def data(dtype: torch.dtype = torch.float32, second: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    return [(X[:15].to(dtype), LABELS[:15]), (second * X[15:].to(dtype), LABELS[15:])]


def loss(output: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.float(), labels)


def scored(model: nn.Module, batches: list[tuple[Tensor, Tensor]], **options: object) -> fk.Scores:
    return fk.score(model, batches, loss, gram=True, progress=False, **{"projections": 4, **options})


EXPONENTS = [40, 64, 100, -40, -70, -100]


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_scores_are_those_of_ordinary_activations(exponent: int) -> None:
    plain, other = scored(net(), data()), scored(net(2.0**exponent), data())
    for name, rel in ("taylor", 1e-6), ("residual", 1e-5), ("wasserstein", 1e-6):
        (inner, last), (found, same) = plain.signals[name], other.signals[name]
        assert found == pytest.approx(inner * (2.0**exponent if name == "wasserstein" else 1.0), rel=rel, abs=0), name
        assert same == pytest.approx(last, rel=rel, abs=0), name
    for name, known in plain.moments.items():
        scale = 1.0 if name.startswith("6") else 4.0**exponent
        assert np.allclose(other.moments[name].gram / scale, known.gram, rtol=1e-5, atol=1e-6)
        assert other.moments[name].count == known.count


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_what_is_left_computes_the_same(exponent: int) -> None:
    """Refitted layer after layer."""
    options = {"keep_params": 0.6, "projections": 4, "progress": False, "compensate": "sequential"}
    (plain, known), (other, found) = (fk.prune(net(by), data(), loss, **options) for by in (1.0, 2.0**exponent))
    assert known.plan is not None
    assert found.plan is not None
    assert [g.removed.tolist() for g in found.plan.groups] == [g.removed.tolist() for g in known.plan.groups]
    assert torch.allclose(plain(X), other(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exponent", [64, 100, -100])
def test_models_in_bfloat16(exponent: int) -> None:
    plain = scored(net(dtype=torch.bfloat16), data(torch.bfloat16))
    other = scored(net(2.0**exponent, torch.bfloat16), data(torch.bfloat16))
    for name in ("taylor", "residual"):
        for a, b in zip(plain.signals[name], other.signals[name], strict=True):
            assert b == pytest.approx(a, rel=0.05, abs=1e-3 * a.max()), name


@pytest.mark.parametrize("second", [2.0**70, 2.0**-100])
def test_a_later_batch_may_be_of_another_size(second: float) -> None:
    def soft(output: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output / output.detach().abs().max(), labels)

    found, exact = (
        fk.score(net(dtype=dtype), data(dtype, second), soft, gram=True, projections=4, progress=False)
        for dtype in (torch.float32, torch.float64)
    )
    for name in ("taylor", "residual"):
        for a, b in zip(exact.signals[name], found.signals[name], strict=True):
            assert b == pytest.approx(a, rel=1e-3, abs=1e-4 * a.max()), name


def test_classes_are_added_up_in_full_precision() -> None:
    """Half precision holds activations and gradients, and not their products."""

    def steep(output: Tensor, labels: Tensor) -> Tensor:
        return output.float().square().mean()

    def found(dtype: torch.dtype) -> fk.Scores:
        model = net(dtype=dtype)
        with torch.no_grad():
            for layer, by in (model[0], 100), (model[6], 100):
                layer.weight.mul_(by)
                layer.bias.mul_(by)
        return fk.score(model, data(dtype), steep, reduction="per_class", projections=4, progress=False)

    half, full = found(torch.float16), found(torch.float32)
    assert max(r.max() for r in full.signals["taylor"]) > 15 * torch.finfo(torch.float16).max
    for a, b in zip(full.signals["taylor"], half.signals["taylor"], strict=True):
        assert b == pytest.approx(a, rel=0.05, abs=0.01 * a.max())


def test_what_only_compensation_reads_is_named_where_it_is_not_finite() -> None:
    class Poisoned(nn.Module):
        """The last layer reads a number that is none, and what is scored (what layers return) does not."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            bad = torch.where(x[:, :1].abs() > 1e3, torch.nan, 0.0)
            return self.b(self.a(x) + bad).nan_to_num(0.0)

    torch.manual_seed(0)
    model, batches = Poisoned().eval(), data()
    units = fk.trace(model, X[:2])
    batches[1][0][3, 0] = 2e3
    with pytest.raises(fk.NonFiniteError, match="at b:input are not finite in batch 1"):
        scored(model, batches, units=units, recipe="paper")


@pytest.mark.parametrize("exponent", [0, 64, -100])
def test_what_waits_on_a_gpu_is_taken_again_as_well(exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There flags are looked at once a batch, and gradients are in the first batch only."""
    at_once = scored(net(2.0**exponent), data())
    monkeypatch.setattr(moments, "AT_ONCE", ())
    waited = scored(net(2.0**exponent), data())
    for name, values in at_once.signals.items():
        for a, b in zip(values, waited.signals[name], strict=True):
            assert np.array_equal(a, b), name


def test_gradients_of_a_later_batch_that_are_not_looked_at_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = iter([1.0, 2.0**70])

    def steeper(output: Tensor, labels: Tensor) -> Tensor:
        return next(scale) * loss(output, labels)

    monkeypatch.setattr(moments, "AT_ONCE", ())
    units = fk.trace(net(), X[:2])
    with pytest.raises(fk.NonFiniteError, match=r"squares of gradients at .*:input are not finite"):
        fk.score(net(), data(), steeper, units=units, gram=True, projections=4, progress=False)


@pytest.mark.parametrize("power", [-45, -41, -40, -39, -38, 0, 60, 62, 63, 64])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_one_norm_of_all_says_what_those_of_the_rows_say(power: int, rows: int) -> None:
    """Of rows as long as each other, and of one that is much longer than the rest."""
    for other in (1.0, 1e-6, 0.0):
        vectors = torch.full((rows, 5), 2.0**power * other)
        vectors[-1] = 2.0**power
        for laid_out in (vectors, vectors.t().contiguous().t()):
            assert squares_are_held(laid_out) == bool(holds_squares(laid_out, _HELD)) == (-41 <= power < 62)
    assert not squares_are_held(torch.full((rows, 5), torch.nan))
    assert not squares_are_held(torch.full((rows, 5), torch.inf))
