"""Invariant 2: scoring leaves the model and the process as they were, also when it fails half-way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from tests.capture.networks import Branches, Plain, build, loader, loss, samples


class Witness:
    """Everything that scoring must not change, taken before and compared after."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self.state()

    def state(self) -> dict[str, object]:
        m = self.model
        return {
            "tensors": [(n, id(t), t.clone()) for n, t in (*m.named_parameters(), *m.named_buffers())],
            "requires_grad": [p.requires_grad for p in m.parameters()],
            "grad": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in m.parameters()],
            "modes": [k.training for k in m.modules()],
            "hooks": [(len(k._forward_hooks), len(k._forward_pre_hooks), len(k._backward_hooks)) for k in m.modules()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
            "python": random.getstate(),
        }

    def check(self) -> None:
        after = self.state()
        for key, was in self.before.items():
            assert same(was, after[key]), key


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def prepared(kind: type[nn.Module]) -> nn.Module:
    """Half-frozen, half-way through training: gradients, mixed modes, a hook of the user's."""
    model = build(kind, torch.float32)
    x, y = samples(8, torch.float32)
    loss(model(x), y).backward()
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


def failing(batches: list, error: BaseException) -> Iterator:
    yield batches[0]
    raise error


@pytest.mark.parametrize("kind", [Plain, Branches])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_untouched(kind: type[nn.Module], recipe: str) -> None:
    model = prepared(kind)
    x, y = samples(24, torch.float32)
    units = fk.trace(model, x[:2], verify=False)
    witness = Witness(model)
    fk.score(model, loader(x, y, 8), loss, units=units, recipe=recipe, projections=4, progress=False)
    witness.check()


def test_untouched_with_tracing_and_proof() -> None:
    model = prepared(Plain)
    x, y = samples(24, torch.float32)
    witness = Witness(model)
    fk.score(model, loader(x, y, 8), loss, projections=4, progress=False)
    witness.check()


def raising(error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    calls = iter(range(100))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == 1:
            raise error
        return loss(output, target)

    return loss_fn


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_untouched_when_the_loss_fails(error: BaseException) -> None:
    model = prepared(Plain)
    x, y = samples(24, torch.float32)
    units = fk.trace(model, x[:2], verify=False)
    witness = Witness(model)
    with pytest.raises(type(error)) as caught:
        fk.score(model, loader(x, y, 8), raising(error), units=units, projections=4, progress=False)
    assert caught.value is error  # passes through unchanged
    witness.check()


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_untouched_when_the_loader_fails(error: BaseException) -> None:
    model = prepared(Plain)
    x, y = samples(24, torch.float32)
    units = fk.trace(model, x[:2], verify=False)
    witness = Witness(model)
    with pytest.raises(type(error)):
        fk.score(model, failing(loader(x, y, 8), error), loss, units=units, projections=4, progress=False)
    witness.check()


def test_untouched_when_the_backward_pass_is_interrupted() -> None:
    model = prepared(Plain)
    x, y = samples(24, torch.float32)
    units = fk.trace(model, x[:2], verify=False)

    class Interrupt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            raise KeyboardInterrupt

    witness = Witness(model)
    with pytest.raises(KeyboardInterrupt):
        fk.score(
            model,
            loader(x, y, 8),
            lambda o, t: Interrupt.apply(loss(o, t)),
            units=units,
            projections=4,
            progress=False,
        )
    witness.check()


def test_no_weight_gradient_is_computed_and_inputs_may_require_gradients() -> None:
    model = build(Plain, torch.float32).eval()
    x, y = samples(12, torch.float32)
    x.requires_grad_()
    fk.score(model, [(x, y)], loss, projections=4, progress=False)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_with_parameters_gets_no_gradient() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return loss(output * self.scale, target)

    model, loss_fn = build(Plain, torch.float32).eval(), Scaled()
    x, y = samples(12, torch.float32)
    fk.score(model, [(x, y)], loss_fn, projections=4, progress=False)
    assert loss_fn.scale.grad is None
