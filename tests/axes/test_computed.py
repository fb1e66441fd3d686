"""Weights that are computed from parameters: followed along both axes where a zero in the parameter silences them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import disable_observer, get_default_qat_qconfig, prepare_qat

import fairkern as fk
from fairkern.plans.removals import random_removal
from tests.axes.harness import Case, Net, assert_exact, check_exact, check_groups


class Weighted(nn.Linear):
    """A linear layer with a computed weight."""

    def __init__(self, inputs: int, outputs: int, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inputs, outputs)
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.of(self.weight), self.bias)


def both(of: Callable[[Tensor], Tensor], groups: dict[str, str] | None = None, **frozen: str) -> Case:
    """Its outputs and its inputs can go."""
    said = {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2", "2": "6: 2.bias:0 2.weight:0 4.weight:1* @ 4"}
    return Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), Weighted(8, 6, of), nn.Tanh(), nn.Linear(6, 3)),
        said if groups is None else groups,
        {name.replace("__", ".weight:").strip("_"): reason for name, reason in frozen.items()},
        shape=(4, 5),
    )


def rounded(w: Tensor) -> Tensor:
    return w + ((8 * w).round() / 8 - w).detach()


def ternary(w: Tensor) -> Tensor:
    return torch.where(w.abs() > 0.1, w.sign(), torch.zeros_like(w))


def binned(w: Tensor) -> Tensor:
    scale, zeros = torch.full((len(w),), 0.1).to(w), torch.zeros(len(w), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w.float(), scale.float(), zeros, 0, -8, 7).to(w)


def written(w: Tensor) -> Tensor:
    w = w.clone()
    return w.mul_(0.5)


def raised(w: Tensor) -> Tensor:
    w = w.clone()
    w.t().add_(1.0)
    return w


ONLY_OUT = {"2": "6: 2.bias:0 2.weight:0 4.weight:1* @ 4"}
NOT_ZERO = "is computed, and not zero where a parameter is"
CASES = {
    "times a number": both(lambda w: w * 0.25),
    "divided by the root of a tensor's value": both(lambda w: w / torch.tensor(5.0).sqrt()),
    "tanh": both(torch.tanh),
    "clipped": both(lambda w: w.clamp(-0.1, 0.2)),
    "rounded straight through": both(rounded),
    "ternary": both(ternary),
    "fake quantised": both(lambda w: torch.fake_quantize_per_tensor_affine(w.float(), 0.05, 3, -8, 7).to(w)),
    "fake quantised channel by channel": both(binned),
    "a copy written to": both(written),
    "half precision": both(lambda w: w.to(torch.float16).to(w.dtype)),
    "power": both(lambda w: w.abs().pow(1.5) * w.sign()),
    "sigmoid": both(torch.sigmoid, ONLY_OUT, _0__0=NOT_ZERO),
    "exponential": both(torch.exp, ONLY_OUT, _0__0=NOT_ZERO),
    "a number added": both(lambda w: w + 0.1, ONLY_OUT, _0__0=NOT_ZERO),
    "clipped above zero": both(lambda w: w.clamp(min=0.1), ONLY_OUT, _0__0=NOT_ZERO),
    "a view of a copy raised": both(raised, ONLY_OUT, _0__0="is computed, not a parameter"),
    "centred": both(lambda w: w - w.mean(1, keepdim=True), ONLY_OUT, _0__0=NOT_ZERO),
    "normalised by the sum of its squares": Case(
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), Weighted(8, 6, lambda w: w * w.pow(2).sum(1, keepdim=True).add(1e-8).rsqrt())
        ),
        {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2"},
        shape=(4, 5),
        renormalised=True,
    ),
}


def gains(m: Net, x: Tensor) -> Tensor:
    return m.b(F.linear(m.a(x).relu(), m.w * m.out[:, None] * m.inputs).relu())


def masked(m: Net, x: Tensor) -> Tensor:
    return m.b(F.linear(m.a(x).relu(), m.mask * m.w).relu())


def convolved(m: Net, x: Tensor) -> Tensor:
    return m.b(F.conv2d(m.a(x).relu(), 0.3 * m.w, stride=2).relu()).mean((2, 3))


def around(run: Callable[[Net, Tensor], Tensor], **more: Tensor) -> Callable[[], nn.Module]:
    return lambda: Net(run, a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(6, 8)), b=nn.Linear(6, 3), **more)


CASES |= {
    "gains of inputs and outputs": Case(
        around(gains, out=nn.Parameter(torch.rand(6)), inputs=nn.Parameter(torch.rand(8))),
        {"a": "8: a.bias:0 a.weight:0 inputs:0 w:1* @ w", "w": "6: b.weight:1* out:0 w:0 @ b"},
        shape=(4, 5),
    ),
    "a mask": Case(
        around(masked, mask=(torch.rand(6, 8) > 0.3).float()),
        {"a": "8: a.bias:0 a.weight:0 mask:1 w:1* @ w", "w": "6: b.weight:1* mask:0 w:0 @ b"},
        shape=(4, 5),
    ),
    "a convolution by a function": Case(
        lambda: Net(convolved, a=nn.Conv2d(3, 6, 3), w=nn.Parameter(torch.randn(8, 6, 3, 3)), b=nn.Conv2d(8, 4, 1)),
        {"a": "6: a.bias:0 a.weight:0 w:1* @ w", "w": "8: b.weight:1* w:0 @ b"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.groups])
def test_exact(name: str) -> None:
    check_exact(CASES[name])


class Modulated(nn.Module):
    """A convolution whose weight is scaled for every sample, in one grouped call or, unfused, before and after it."""

    def __init__(self, inputs: int, outputs: int, style: int, *, demodulate: bool, fused: bool) -> None:
        super().__init__()
        self.scale, self.outputs = 1 / math.sqrt(inputs * 9), outputs
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.modulation = nn.Linear(style, inputs)
        self.demodulate, self.fused = demodulate, fused

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        b, inputs, high, wide = x.shape
        style = self.modulation(style).view(b, 1, inputs, 1, 1)
        weight = self.scale * self.weight * style
        norm = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        if not self.fused:
            y = F.conv2d(x * style.reshape(b, inputs, 1, 1), self.scale * self.weight.squeeze(0), padding=1)
            return y * norm.view(b, self.outputs, 1, 1) if self.demodulate else y
        if self.demodulate:
            weight = weight * norm.view(b, self.outputs, 1, 1, 1)
        weight = weight.view(b * self.outputs, inputs, 3, 3)
        y = F.conv2d(x.view(1, b * inputs, high, wide), weight, padding=1, groups=b)
        return y.view(b, self.outputs, high, wide)


class Generator(nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.b = Modulated(6, 8, 4, **how), Modulated(8, 6, 4, **how)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.b(self.a(self.start(x), style).relu(), style).relu()
        return self.last(x)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolutions(demodulate: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model = Generator(demodulate=demodulate, fused=fused).eval()
    x = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
    units = fk.trace(model, x)
    assert sorted(units.groups[g].units for g in units.prunable) == [6, 6, 8]
    double = (x[0].double(), x[1].double())
    assert_exact(model.double(), units, random_removal(units, 0.5, seed=2), [double], oracle=not demodulate)
    batch = (torch.randn(4, 3, 8, 8), torch.randn(4, 4)), torch.tensor([0, 0, 1, 1])
    scores = fk.score(model.float(), [batch], loss, units=units, progress=False)
    fk.apply(model, scores.plan(keep_params=0.5))(*x)


def loss(images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(images.mean((2, 3)), labels)


def prepared() -> nn.Module:
    """For training that is aware of quantisation, with the ranges of two batches."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    made.qconfig = get_default_qat_qconfig("x86")
    made = prepare_qat(made.train())
    made(torch.randn(4, 3, 8, 8))
    made(torch.randn(4, 3, 8, 8))
    return made.eval()


def test_training_aware_of_quantisation() -> None:
    model, x = prepared(), torch.randn(4, 3, 8, 8)
    with pytest.raises(fk.InputError, match=r"observer takes its range.*model\.apply\(.*disable_observer\)"):
        fk.trace(model, x)
    model.apply(disable_observer)
    units = fk.trace(model, x)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == {"0": 8, "3": 6}
    plan = fk.score(model, [(x, torch.tensor([0, 0, 1, 1]))], F.cross_entropy, units=units, progress=False).plan(
        keep_params=0.5
    )
    small = fk.apply(model, plan)
    with plan.masked(model):
        torch.testing.assert_close(small(x), model(x))
    assert small.train()(x).shape == (4, 3)


def test_buffers_that_a_first_pass_sizes_are_put_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    model.qconfig = get_default_qat_qconfig("x86")
    model = prepare_qat(model.train()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fk.InputError, match="observer takes its range"):
        fk.trace(model, torch.randn(2, 3, 8, 8))
    after = model.state_dict()
    assert all(
        tensor.shape == after[name].shape and torch.equal(tensor, after[name]) for name, tensor in before.items()
    )


@pytest.mark.parametrize("kind", [nn.Linear, None], ids=["subclass", "own module"])
def test_scored_and_pruned_and_compensation_leaves_it_alone(kind: type[nn.Module] | None) -> None:
    class Equal(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 0.3)

    def layer(inputs: int, outputs: int) -> nn.Module:
        return Weighted(inputs, outputs, lambda w: w * 0.3) if kind else Equal(inputs, outputs)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), layer(12, 10), nn.Tanh(), layer(10, 3)).eval()
    x = torch.randn(32, 5)
    batches = [(x, torch.arange(32) % 3)]
    units = fk.trace(model, x)
    assert units.computed == ("2.weight", "4.weight")
    scores = fk.score(model, batches, F.cross_entropy, units=units, gram=True, progress=False)
    plan = scores.plan(keep_params=0.5)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    with plan.masked(model):
        torch.testing.assert_close(small(x), model(x))
    small, report = fk.prune(model, batches, F.cross_entropy, keep_params=0.5, progress=False)
    assert small(x).shape == (32, 3)
    assert "the weight is computed from it" in str(vars(report))
