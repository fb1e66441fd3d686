"""How far a cut model's outputs are from the uncut one's, in the currency of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.capture.batches import Batch, batches
from fairkern.capture.losses import Losses
from fairkern.errors import InputError, NonFiniteError
from fairkern.model.nested import tensors_in
from fairkern.model.tensors import memory_of
from fairkern.ranks import ALONE, Ranks

_NOTHING = 1e-5  # of the largest value: rounding
_INSTEAD = "pass another loss_fn=, such as the mean squared distance to any target, or use compensate='sequential'"


@dataclass(frozen=True, eq=False)
class Loss:
    """What says how near two outputs are. `function`: as for `score`; None: the model's own. `uncut`: the model whose
    outputs are to be met; None: the one that is cut."""

    function: Callable[[Any, Any], Tensor] | None = None
    samples_of: Callable[[Any], int] | None = None
    uncut: nn.Module | None = None
    mean: bool = True  # over a batch's samples; else their sum
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Aim:
    """One batch in the uncut model: which of the tensors that it returns the loss is made from, the loss's slope in
    each, and `⟨slope, output⟩ − loss`, give or take `rounding`. `weight`: of the batch in the whole."""

    batch: Batch
    weight: float
    places: tuple[int, ...]
    slopes: tuple[Tensor, ...]
    constant: float
    rounding: float


class Divergence:
    """The Bregman divergence of the loss, a mean over samples: `ℓ(z) − ℓ(z₀) − ⟨∇ℓ(z₀), z − z₀⟩` for outputs `z` of the
    cut model and `z₀` of the uncut one.

    That is how much the loss rises beyond what its slope says: of the cross-entropy the Kullback-Leibler divergence
    `KL(p₀ ‖ p)`, of the squared error the squared distance. Targets cancel in both: the uncut model is what is aimed
    at, and not the labels. Positions that the loss ignores (padding) count for nothing. It is never negative where the
    loss is convex in what the model returns, which is asked for here.

    Raises InputError (a loader that yields nothing; a loss that is not made from what the model returns, or whose slope
    there does not change). Memory: all batches, and what the model returns for them.
    Cost: a forward pass and what it takes to go back to the outputs, per batch.
    """

    def __init__(
        self, model: nn.Module, small: nn.Module, loader: Iterable[Any], loss: Loss, ranks: Ranks = ALONE
    ) -> None:
        """Within `untouched`: all parameters of `model` are made to want gradients. Of several processes each has the
        aims of some batches, and all have the values of the whole."""
        self._ranks = ranks
        self._losses = Losses(small, loss.function, loss.seed)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        self._own = own = Losses(model, loss.function, loss.seed)
        found = list(batches(loader, model, False, loss.samples_of))
        if not found:
            raise InputError("the loader yields no batch; compensate='joint' needs one that can be iterated again")
        self.samples = sum(batch.samples for batch in found)
        self.aims: list[_Aim] = []
        for batch in (batch for batch in found if ranks.own(batch.index)):
            weight = (batch.samples if loss.mean else 1) / self.samples
            self.aims.append(_aim(own, batch, weight, self.aims[0].places if self.aims else None))

    def loss(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Tensors that the cut model returns, and its loss."""
        output, loss = self._losses.answered(batch)
        return list(tensors_in(output)), loss

    def __call__(self, parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """Its value and its gradient in these parameters of the cut model."""
        value = 0.0
        gradient = [torch.zeros_like(p) for p in parameters]
        for aim in self.aims:
            with torch.enable_grad():
                returned, loss = self.loss(aim.batch)
            outputs = [_like(returned, place, slope) for place, slope in zip(aim.places, aim.slopes, strict=True)]
            told = _products(aim.slopes, outputs)
            value += aim.weight * (float(loss.detach().double()) - told + aim.constant)
            slopes = [loss.new_tensor(aim.weight), *(-aim.weight * s for s in aim.slopes)]
            parts = torch.autograd.grad([loss, *outputs], parameters, slopes, allow_unused=True)
            for total, part in zip(gradient, parts, strict=True):
                if part is not None:
                    total += part
        if not self._ranks.several:
            return value, gradient
        whole, *sums = self._ranks.summed("the divergence", [_number(value), *gradient])
        return float(whole), [total.to(part) for total, part in zip(sums, gradient, strict=True)]

    def check(self, value: float) -> None:
        """Raises NonFiniteError, and InputError where the loss cannot say how far the models are apart."""
        if not math.isfinite(value):
            raise NonFiniteError(f"the cut model is {value} away from the uncut one: its outputs are not finite")
        (rounding,) = self._ranks.summed("rounding", [_number(sum(aim.weight * aim.rounding for aim in self.aims))])
        if value < -float(rounding):
            raise InputError(
                f"the loss falls by {-value:.3g} below its tangent at the uncut model's outputs, so it is not convex "
                f"in what the model returns: {_INSTEAD}"
            )
        if self._ranks.told("the slopes of the loss", lambda: self._linear(self.aims[0])):
            raise InputError(
                "the loss is linear in what the model returns, so that its slope says all of it and no output is far "
                f"from another: {_INSTEAD}"
            )

    def _linear(self, aim: _Aim) -> bool:
        """Whether the loss has the same slope at both models' outputs, which are not the same."""
        with torch.enable_grad():
            returned, loss = self.loss(aim.batch)
        outputs = [returned[place] for place in aim.places]
        slopes = torch.autograd.grad(loss, outputs)
        if any(_apart(now, then) > _NOTHING for now, then in zip(slopes, aim.slopes, strict=True)):
            return False
        with torch.no_grad():
            before = list(tensors_in(self._own.answered(aim.batch)[0]))
        return any(_apart(z, before[place]) > _NOTHING for z, place in zip(outputs, aim.places, strict=True))


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest value."""
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    return float((a.detach() - b.detach()).abs().max()) / scale if scale else 0.0


def _aim(losses: Losses, batch: Batch, weight: float, places: tuple[int, ...] | None) -> _Aim:
    with torch.enable_grad():
        output, loss = losses.answered(batch)
    returned = list(tensors_in(output))
    if places is None:
        places = _places(returned, loss)
    outputs = [returned[place] for place in places]
    slopes = torch.autograd.grad(loss, outputs)
    told, own = _products(slopes, outputs), float(loss.detach().double())
    eps = max(torch.finfo(t.dtype).eps for t in (loss, *outputs))
    size = abs(own) + _products([s.abs() for s in slopes], [z.abs() for z in outputs])
    return _Aim(batch, weight, places, tuple(slopes), told - own, 16 * eps * size)


def _products(slopes: Iterable[Tensor], outputs: Iterable[Tensor]) -> float:
    return sum(float((s.double() * z.detach().double()).sum()) for s, z in zip(slopes, outputs, strict=True))


def _places(returned: Sequence[Tensor], loss: Tensor) -> tuple[int, ...]:
    """Which of the tensors that a model returns its loss is made from, without those that others of them are made from
    (hidden states)."""
    itself = memory_of(loss)
    known = {id(z): i for i, z in enumerate(returned) if z.requires_grad and memory_of(z) != itself}
    own = sorted(known.values()) if loss.requires_grad else []
    slopes = torch.autograd.grad(loss, [returned[i] for i in own], retain_graph=True, allow_unused=True) if own else ()
    used = [i for i, slope in zip(own, slopes, strict=True) if slope is not None]
    last = []
    for i in used:
        others = [returned[j] for j in used if j != i]
        ones = [torch.ones_like(z) for z in others]
        made = (
            torch.autograd.grad(others, returned[i], ones, retain_graph=True, allow_unused=True) if others else [None]
        )
        if made[0] is None:
            last.append(i)
    if not last:
        raise InputError(
            "the loss is not made from any tensor that the model returns, so that there is nothing to meet: pass "
            "loss_fn(output, targets), or use compensate='sequential'"
        )
    return tuple(last)


def _like(returned: Sequence[Tensor], place: int, slope: Tensor) -> Tensor:
    if place >= len(returned) or returned[place].shape != slope.shape:
        shown = tuple(returned[place].shape) if place < len(returned) else "nothing"
        raise InputError(
            f"the cut model returns {shown} where the uncut one returns {tuple(slope.shape)}: what it returns is "
            "chosen by its values (boxes, queries): use compensate='sequential'"
        )
    return returned[place]
