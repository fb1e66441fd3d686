"""The gradient of BatchNorm in eval mode by one product, where torch's backward walks what train mode needs as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairkern.model.sharded import is_sharded


@contextlib.contextmanager
def affine_norms(model: nn.Module) -> Iterator[None]:
    """Inside, every BatchNorm of `model` that uses its running statistics passes gradients as the affine map it is.

    What it computes forward is what its own `forward` computes. Modules that override `forward` keep theirs. Parameters
    and statistics must not change inside; they get no gradient.
    """
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            if _is_affine(module):
                whole = not any(is_sharded(p) for p in module.parameters())  # else a pass has other tensors there
                module.forward = partial(_forward, module, _slope(module) if whole else None)
                changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _is_affine(module: nn.Module) -> bool:
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward is _BatchNorm.forward
        and "forward" not in vars(module)
        and not module.training
        and module.running_mean is not None
        and module.running_var is not None
    )


def _slope(norm: nn.Module) -> Tensor:
    """Change of the output per change of the input: [C]."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    slope = torch.rsqrt(norm.running_var.detach() + norm.eps)
    return slope if norm.weight is None else slope * norm.weight.detach()


def _forward(norm: nn.Module, slope: Tensor | None, input: Tensor) -> Tensor:
    if not input.requires_grad or not torch.is_grad_enabled():
        return type(norm).forward(norm, input)
    return _Affine.apply(input, _slope(norm) if slope is None else slope, norm)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, slope: Tensor, norm: nn.Module) -> Tensor:
        ctx.slope = slope.view(-1, *[1] * (x.ndim - 2))  # type: ignore[attr-defined]
        return type(norm).forward(norm, x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad * ctx.slope).to(grad.dtype), None, None  # type: ignore[attr-defined]
