"""Losses and models that go backward themselves: the right scores or a clear error, and no gradient is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.capture.networks import Plain, build, loader, loss, samples

X, Y = samples(24, torch.float32)
DATA = loader(X, Y, 12)


def scored(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor] = loss) -> fk.Scores:
    units = fk.trace(model, X[:2], verify=False)
    return fk.score(model, DATA, loss_fn, units=units, gram=True, projections=4, progress=False)


def kept(output: Tensor, target: Tensor) -> Tensor:
    value = loss(output, target)
    value.backward(retain_graph=True)
    value.backward(retain_graph=True)
    return value


def looked_at(output: Tensor, target: Tensor) -> Tensor:
    value = loss(output, target)
    assert torch.autograd.grad(value, output, retain_graph=True)[0].shape == output.shape
    return value


def freed(output: Tensor, target: Tensor) -> Tensor:
    value = loss(output, target)
    value.backward()
    return value


def freed_in_part(output: Tensor, target: Tensor) -> Tensor:
    value = loss(output, target)
    torch.autograd.grad(value, output)
    return value


@pytest.mark.parametrize("loss_fn", [kept, looked_at])
def test_only_our_own_gradients_are_heard(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = build(Plain, torch.float32).eval()
    plain, other = scored(net), scored(net, loss_fn)
    for name, values in plain.signals.items():
        for a, b in zip(values, other.signals[name], strict=True):
            assert np.array_equal(a, b), name
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("loss_fn", [freed, freed_in_part])
def test_a_graph_that_is_gone_is_named(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = build(Plain, torch.float32).eval()
    with pytest.raises(fk.InputError, match=r"calls backward\(\) or autograd.grad\(\) itself.*retain_graph=True"):
        scored(net, loss_fn)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_what_a_gradient_of_our_own_raises_passes_through() -> None:
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        scored(build(Plain, torch.float32).eval(), lambda output, target: loss(Raises.apply(output), target))


class Backward(nn.Module):
    """Goes backward within its forward, and so adds to the gradients of its parameters."""

    def __init__(self, *layers: nn.Module, retain: bool = True) -> None:
        super().__init__()
        self.net, self.retain = nn.Sequential(*layers), retain

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            output = self.net(x.flatten(1))
            output.sum().backward(retain_graph=self.retain)
            return output if self.retain else self.net(x.flatten(1))


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(X[0].numel(), 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)]


@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("before", [False, True])
def test_a_model_that_goes_backward_has_the_gradients_that_it_had(retain: bool, before: bool) -> None:
    net = Backward(*layers(), retain=retain).eval()
    normed = Backward(nn.Linear(X[0].numel(), 4), nn.BatchNorm1d(4), retain=retain).eval()
    grads = {id(p): torch.full_like(p, 2.0) if before else None for n in (net, normed) for p in n.parameters()}
    for parameter in (*net.parameters(), *normed.parameters()):
        parameter.grad = grads[id(parameter)]
    units = fk.trace(net, X[:2])
    fk.score(net, DATA, loss, units=units, projections=4, progress=False)
    fk.latency(net, X[:2])
    fk.recalibrate(normed, DATA)
    for parameter in (*net.parameters(), *normed.parameters()):
        assert parameter.grad is grads[id(parameter)]
        assert parameter.grad is None or bool((parameter.grad == 2.0).all())


def test_the_units_of_a_model_that_goes_backward_are_scored_once() -> None:
    found, expected = scored(Backward(*layers()).eval()), scored(nn.Sequential(nn.Flatten(), *layers()).eval())
    (group,) = (g for g in found.units.prunable)
    twin = next(g for g in expected.units.prunable if expected.units.groups[g].name == "1")
    assert found.units.groups[group].name == "net.0"
    for name, values in found.signals.items():
        assert values[group] == pytest.approx(expected.signals[name][twin], rel=1e-4), name
