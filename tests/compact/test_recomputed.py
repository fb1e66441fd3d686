"""Gradient checkpointing of a cut model whose code passes on sizes: what is computed again has the smaller sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fairkern as fk
from fairkern.compact.sites import SizedForward
from tests.compact.test_sites import cut

RUN: dict[str, Any] = {}


def again(function: Callable[..., Any], *args: Any) -> Any:
    """The function, checkpointed as the test says."""
    return RUN["by"](function, *args)


class Recompute(torch.autograd.Function):
    """Checkpointing as projects write it themselves."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *given: Tensor) -> Tensor:
        ctx.function, ctx.random = function, torch.get_rng_state()
        ctx.save_for_backward(*given)
        with torch.no_grad():
            return function(*given)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad(), torch.random.fork_rng([]):
            torch.set_rng_state(ctx.random)
            torch.autograd.backward(ctx.function(*given), grads)
        return None, *(t.grad for t in given)


WAYS: dict[str, Callable[..., Any]] = {
    "reentrant": lambda f, *a: checkpoint(f, *a, use_reentrant=True),
    "not reentrant": lambda f, *a: checkpoint(f, *a, use_reentrant=False),
    "no early stop": lambda f, *a: checkpoint(f, *a, use_reentrant=False, early_stop=False),
    "a Function": lambda f, *a: Recompute.apply(f, *a),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    RUN["by"] = WAYS[request.param]
    yield request.param
    RUN.clear()


def heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, n, _ = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


class Attention(nn.Module):
    """Sizes as numbers in a method, in a function, in a closure; dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.drop = nn.Dropout(0.3)

    def mixed(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        out = F.scaled_dot_product_attention(*heads(self.qkv(self.drop(self.norm(x)))))
        return self.drop(out.transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.mixed(x))


class Method(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(again(self.mixed, x))


class Closure(Attention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape

        def inner(y: Tensor) -> Tensor:
            q, k, v = heads(self.qkv(self.norm(y)))
            return self.drop(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

        return x + self.proj(again(inner, x))


class Parts(Attention):
    """Some calls inside and some outside, twice."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = again(lambda y: self.qkv(self.drop(self.norm(y))).reshape(b, n, 3, 4, 6), x)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = again(lambda *qkv: F.scaled_dot_product_attention(*qkv).transpose(1, 2), q, k, v)
        return x + again(lambda y: self.proj(self.drop(y.reshape(b, n, c))), out)


class Nested(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x + again(lambda y: self.proj(again(self.mixed, y)), x)


class NumberedParts(nn.Module):
    """Layers in a loop of one module's code, each with a size of its own, as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = (12, 18)
        self.up = nn.ModuleList([nn.Linear(24, width) for width in self.widths])
        self.down = nn.ModuleList([nn.Linear(width, 24) for width in self.widths])
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        for i, width in enumerate(self.widths):

            def layer(y: Tensor, i: int = i, width: int = width) -> Tensor:
                z = self.drop(self.up[i](y)).view(-1, width // 6, 6).relu()
                return self.down[i](z.reshape(y.shape[0], y.shape[1], width))

            x = x + again(layer, x)
        return x


INSIDE: dict[str, Callable[[], nn.Module]] = {
    "a method": Method,
    "a closure": Closure,
    "parts": Parts,
    "nested": Nested,
    "a loop": NumberedParts,
}


def gradients(model: nn.Module, *batches: Tensor) -> list[Tensor]:
    """Of the input and of all parameters, after a forward pass for each batch and one backward pass."""
    model.zero_grad()
    torch.manual_seed(3)
    inputs = [x.clone().requires_grad_() for x in batches]
    sum((model(x).square().sum() for x in inputs), torch.zeros(())).backward()
    found = [x.grad for x in inputs] + [p.grad for p in model.parameters()]
    assert all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


def small_and_x(model: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    small, plan, _ = cut(model.double().eval(), x)
    assert plan.sites
    return small.train(), x


def compare(small: nn.Module, *batches: Tensor) -> None:
    found = gradients(small, *batches)
    by, RUN["by"] = RUN["by"], lambda f, *a: f(*a)
    expected = gradients(small, *batches)
    RUN["by"] = by
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", INSIDE)
def test_parts_of_a_module(name: str, way: str) -> None:
    small, x = small_and_x(INSIDE[name]())
    compare(small, x)
    compare(small, x, x[:1])  # several forward passes before one backward pass
    small.eval()
    compare(small, x)


class Around(nn.Module):
    """Checkpointed modules, some of which checkpoint parts of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Method(), Closure()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = again(layer, x)
        return x


def test_modules_from_outside(way: str) -> None:
    small, x = small_and_x(Around())
    assert sum(isinstance(m, SizedForward) for m in small.modules()) == 3
    compare(small, x)


def test_sequences() -> None:
    small, x = small_and_x(nn.Sequential(Attention(), Attention(), Attention()))
    assert isinstance(small, nn.Sequential)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(3)
        y = x.clone().requires_grad_()
        run(y).square().sum().backward()
        assert y.grad is not None
        return y.grad

    for reentrant in (True, False):
        found = gradient(lambda y, r=reentrant: checkpoint_sequential(small, 2, y, use_reentrant=r))
        torch.testing.assert_close(found, gradient(small))


def test_copies_and_a_second_backward_pass() -> None:
    RUN["by"] = WAYS["not reentrant"]
    small, x = small_and_x(Method())
    compare(copy.deepcopy(small), x)
    y = x.clone().requires_grad_()
    torch.manual_seed(3)
    loss = small(y).square().sum()
    (first,) = torch.autograd.grad(loss, y, retain_graph=True)
    (second,) = torch.autograd.grad(loss, y)
    assert torch.equal(first, second)
    RUN.clear()


def test_gradients_inside_a_forward_pass(way: str) -> None:
    """A module that asks for a gradient in its own forward pass: what is computed again is substituted once."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Method()
            self.up, self.down = nn.Linear(24, 12), nn.Linear(12, 24)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                torch.autograd.backward(self.inner(y).square().sum(), inputs=None)
            assert y.grad is not None
            return self.down(self.up(x + y.grad.detach() * 0).view(-1, 2, 6).relu().view(x.shape[0], x.shape[1], 12))

    model = Slope().double().eval()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    RUN["by"], by = (lambda f, *a: f(*a)), RUN["by"]
    small, plan, _ = cut(model, x)
    assert {site.module for site in plan.sites} >= {""}
    expected = small(x)
    RUN["by"] = by
    assert torch.equal(small(x), expected)


def test_an_error_in_the_backward_pass_leaves_nothing_behind(way: str) -> None:
    small, x = small_and_x(Method())
    expected = gradients(small, x)
    loss = small(x.clone().requires_grad_()).sum()
    weight, small.qkv.weight = small.qkv.weight, nn.Parameter(torch.zeros(3, 3, dtype=x.dtype))
    with pytest.raises(RuntimeError):
        loss.backward()
    small.qkv.weight = weight
    assert not torch.overrides._get_current_function_mode_stack()
    for one, other in zip(gradients(small, x), expected, strict=True):
        assert torch.equal(one, other)


def test_masked_and_cut_agree() -> None:
    """The gradients of the cut model are those of the masked one at the units that stay."""
    RUN["by"] = WAYS["not reentrant"]
    torch.manual_seed(0)
    model = Method().double().eval()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    small, plan, _ = cut(model, x)
    with fk.Plan(**vars(plan)).masked(model):
        expected = gradients(model, x)[0]
    torch.testing.assert_close(gradients(small, x)[0], expected, rtol=1e-10, atol=1e-10)
    RUN.clear()
