"""All layers of a cut model fitted together, so that its outputs are those of the uncut model again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compensate.descent import Point, dot, minimise
from fairkern.compensate.divergence import Divergence, Loss
from fairkern.compensate.layers import Layer, layers_of, listened
from fairkern.errors import InputError
from fairkern.model.autocast import forget_casts
from fairkern.model.replacements import in_place
from fairkern.model.untouched import untouched
from fairkern.plans.renaming import Renaming
from fairkern.types import Plan, UnitMap

STEPS = 20


def fit_together(
    model: nn.Module, small: nn.Module, plan: Plan, units: UnitMap, loader: Iterable[Any], loss: Loss
) -> tuple[float, float]:
    """Change weights and biases of `small`, which `plan` left of `model`, so that it gives what `model` gives.

    Least squares meets what every layer gave, one layer after the other; what matters is what comes out in the end. So
    `STEPS` steps of conjugate gradients lower the `Divergence` of the outputs over all of `loader`, in the weights and
    biases of all linear layers and convolutions at once. Gradients are divided by what each layer's inputs say of the
    curvature (second moments, Kronecker-factored). There is no learning rate, no order of batches and no chance in it,
    and targets do not count: it is a fit, cut short before it follows the noise of the calibration data. Tied weights,
    weights that are computed, norms, embeddings, recurrent layers and fused experts stay as they are.

    Returns the divergence before and after, which is never larger. `model` is left as it was; so is `small`, but for
    these values.
    Raises InputError (as `Divergence`; a model without such a layer), NonFiniteError.
    Cost: about `4 · STEPS` forward and backward passes in all; memory: what a backward pass of `small` takes, seven
    times these weights, a float64 matrix [inputs, inputs] per layer, the batches and what `model` returns for them.
    """
    renaming = Renaming(plan)
    computed = {after for name in units.computed if (after := renaming.after(name)) is not None}
    with contextlib.ExitStack() as stack:
        for net in (model, small):
            stack.enter_context(untouched(net))
            stack.enter_context(in_place(net))
            net.eval()
        divergence = Divergence(loss.uncut or model, small, loader, loss)
        layers, steep = _heard(list(layers_of(small, computed).values()), divergence)
        if not layers:
            raise InputError("no linear layer or convolution of the cut model has a weight of its own to be fitted")
        held = [parameter for layer in layers for parameter in layer.parameters]
        samples = sum(aim.batch.samples for aim in divergence.aims)
        values: list[float] = []

        def at(point: Point) -> tuple[float, Point]:
            _set(held, point)
            value, gradient = divergence(held)
            if not values:
                divergence.check(value, dot(gradient, gradient) ** 0.5, steep)
            values.append(value)
            return value, [g.to(p) for g, p in zip(gradient, point, strict=True)]

        def precondition(gradient: Point) -> Point:
            parts = iter(gradient)
            return [s for layer in layers for s in layer.scaled([next(parts) for _ in layer.parameters], samples)]

        start = [p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone() for p in held]
        _set(held, minimise(at, start, precondition, STEPS))
        after = divergence(held)[0]
    forget_casts()
    return values[0], after


def _set(held: Sequence[nn.Parameter], point: Point) -> None:
    with torch.no_grad():
        for parameter, value in zip(held, point, strict=True):
            parameter.copy_(value)


def _heard(layers: Sequence[Layer], divergence: Divergence) -> tuple[list[Layer], float]:
    """The layers that run on these data, with what one pass of the loss tells of them, and the length of its gradient
    (at most: batches are added up as if they agreed)."""
    held: list[Tensor] = [p.requires_grad_(True) for layer in layers for p in layer.parameters]
    steep = 0.0
    with listened(layers):
        for aim in divergence.aims if held else ():
            with torch.enable_grad():
                loss = divergence.loss(aim.batch)[1] * aim.batch.samples
            found = [g for g in torch.autograd.grad(loss, held, allow_unused=True) if g is not None]
            steep += aim.weight / aim.batch.samples * dot(found, found) ** 0.5
    return [layer for layer in layers if layer.moments is not None and layer.power > 0], steep
