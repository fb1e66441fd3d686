"""All layers of a cut model fitted together, so that its outputs are those of the uncut model again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compensate.descent import Point, minimise
from fairkern.compensate.divergence import Divergence, Loss
from fairkern.compensate.layers import Layer, add_up, layers_of, listened
from fairkern.errors import InputError
from fairkern.model.autocast import forget_casts
from fairkern.model.replacements import in_place
from fairkern.model.untouched import untouched
from fairkern.plans.renaming import Renaming
from fairkern.ranks import ALONE, Ranks
from fairkern.types import Plan, Told, UnitMap, silent

STEPS = 20


def fit_together(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    units: UnitMap,
    loader: Iterable[Any],
    loss: Loss,
    ranks: Ranks = ALONE,
    told: Told = silent,
) -> tuple[float, float]:
    """Change weights and biases of `small`, which `plan` left of `model`, so that it gives what `model` gives.

    Least squares meets what every layer gave, one layer after the other; what matters is what comes out in the end. So
    `STEPS` steps of conjugate gradients lower the `Divergence` of the outputs over all of `loader`, in the weights and
    biases of all linear layers and convolutions at once. Gradients are divided by what each layer's inputs say of the
    curvature (second moments, Kronecker-factored). There is no learning rate, no order of batches and no chance in it,
    and targets do not count. Tied weights, weights that are computed, norms, embeddings, recurrent layers and fused
    experts stay as they are.

    Several processes each have some of the batches, and come to the same values.

    Returns the divergence before and after, which is never larger. `model` is left as it was; so is `small`, but for
    these values.
    Raises InputError (as `Divergence` and its `check`), NonFiniteError.
    Cost: about `1.6 · STEPS` forward and backward passes over `loader`; memory: what a backward pass of `small` takes,
    seven times these weights, a float64 matrix [inputs, inputs] per layer, the batches and what `model` returns for
    them.
    """
    renaming = Renaming(plan)
    computed = {after for name in units.computed if (after := renaming.after(name)) is not None}
    with contextlib.ExitStack() as stack:
        for net in (model, small):
            stack.enter_context(untouched(net))
            stack.enter_context(in_place(net))
            net.eval()
        divergence = Divergence(loss.uncut or model, small, loader, loss, ranks)
        layers = _heard(list(layers_of(small, computed).values()), divergence, ranks)
        if not layers:
            raise InputError(
                "the cut model runs through no linear layer or convolution with a weight of its own, so there is "
                "nothing to fit: use compensate='sequential'"
            )
        held = [parameter for layer in layers for parameter in layer.parameters]

        def at(point: Point) -> tuple[float, Point]:
            _set(held, point)
            value, gradient = divergence(held)
            return value, [g.to(p) for g, p in zip(gradient, point, strict=True)]

        def precondition(gradient: Point) -> Point:
            told(next(steps), STEPS, "fitting all layers together")
            parts = iter(gradient)
            samples = divergence.samples
            return [s for layer in layers for s in layer.scaled([next(parts) for _ in layer.parameters], samples)]

        steps = itertools.count()
        start = [p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone() for p in held]
        found = minimise(at, start, precondition, STEPS)
        _set(held, found.point)
    forget_casts()
    return found.first, found.value


def _set(held: Sequence[nn.Parameter], point: Point) -> None:
    with torch.no_grad():
        for parameter, value in zip(held, point, strict=True):
            parameter.copy_(value)


def _heard(layers: Sequence[Layer], divergence: Divergence, ranks: Ranks) -> list[Layer]:
    """The layers that run on these data, with what one pass tells of them. Raises what `Divergence.check` raises."""
    held: list[Tensor] = [p.requires_grad_(True) for layer in layers for p in layer.parameters]
    if held:
        with listened(layers):
            value, _ = divergence(held)
        add_up(layers, ranks)
        divergence.check(value)
    return [layer for layer in layers if layer.moments is not None]
