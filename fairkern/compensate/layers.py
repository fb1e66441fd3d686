"""Linear layers and convolutions of a cut model, fitted together, and what their inputs say of the curvature there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.descriptors import tensors_of
from fairkern.model.linear import adds_bias, made_dim
from fairkern.ops.ridge import solve
from fairkern.ranks import Ranks

DAMPING = 1e-2  # ridge of the inputs' second moments, in mean variances


@dataclass(eq=False)
class Layer:
    """One of them: its second moments `Σ a aᵀ` by group, float64 [groups, n, n], and `Σ (∂L/∂y)²` of what it gives."""

    module: nn.Module
    moments: Tensor | None = None
    positions: int = 0
    power: float = 0.0
    _inverse: Tensor | None = field(default=None, init=False)

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)

    @property
    def parameters(self) -> list[nn.Parameter]:
        held = self.module._parameters
        return [p for p in (held["weight"], held["bias"]) if p is not None]

    def hear(self, read: Tensor) -> None:
        """What one call reads."""
        act = read.detach()
        if isinstance(self.module, nn.modules.conv._ConvNd):
            act = act.movedim(-1 - len(self.module.kernel_size), -1)
        rows = act.reshape(-1, self.groups, act.shape[-1] // self.groups).movedim(1, 0).double()
        made = rows.mT @ rows
        self.moments = made if self.moments is None else self.moments + made
        self.positions += rows.shape[1]

    def scaled(self, gradient: Sequence[Tensor], samples: int) -> list[Tensor]:
        """Gradients of weight and bias over the curvature there: the second moments times the mean squared gradient of
        what the layer gives (Kronecker-factored, the same in all directions of the output)."""
        assert self.moments is not None
        weight, *bias = gradient
        stake = self.power / (samples * weight.shape[made_dim(self.module)] * self.groups_made)
        if not stake > 0:
            return [torch.zeros_like(g) for g in gradient]
        return [(self._solved(weight) / stake).to(weight), *(b / stake for b in bias)]

    @property
    def groups_made(self) -> int:
        """By how much the outputs are more than the weight's dimension for them says."""
        return self.groups if getattr(self.module, "transposed", False) else 1

    def _solved(self, weight: Tensor) -> Tensor:
        """`weight (C + ridge)⁻¹` over what it reads."""
        assert self.moments is not None
        if self._inverse is None:
            mean = self.moments / max(self.positions, 1)
            eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
            self._inverse = torch.stack([solve(own, eye, DAMPING)[0] for own in mean])
        inner = 1 - made_dim(self.module)
        moved = weight.double().movedim(inner, -1)
        if self.groups == 1:
            return (moved @ self._inverse[0]).movedim(-1, inner)
        at = moved.ndim - 1 if getattr(self.module, "transposed", False) else 0  # where the groups lie
        parts = moved.unflatten(at, (self.groups, -1)).movedim(at, 0)
        lead = self._inverse.reshape(self.groups, *[1] * (parts.ndim - 3), *self._inverse.shape[1:])
        return (parts @ lead).movedim(0, at).flatten(at, at + 1).movedim(-1, inner)


def layers_of(small: nn.Module, computed: Set[str]) -> dict[str, Layer]:
    """By path, those whose weight is a parameter of their own: not tied to another role, not in `computed` (names of
    tensors that weights are computed from)."""
    single = {held.names[0] for held in tensors_of(small) if len(held.names) == 1}
    found = {}
    for path, module in small.named_modules():
        if not adds_bias(module) or module._parameters.get("weight") is None:
            continue
        held = [name for name in ("weight", "bias") if module._parameters[name] is not None]
        names = [f"{path}.{name}" if path else name for name in held]
        if single.issuperset(names) and computed.isdisjoint(names):
            found[path] = Layer(module)
    return found


@contextlib.contextmanager
def listened(layers: Sequence[Layer]) -> Iterator[None]:
    """Within, forward and backward passes add to what is known of these layers."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.module.register_forward_hook(_hook(layer)).remove)
        yield


def add_up(layers: Sequence[Layer], ranks: Ranks) -> None:
    """What several processes have heard of these layers, in each of them."""
    if not ranks.several:
        return
    shapes = ranks.gathered("layers", [None if layer.moments is None else layer.moments.shape for layer in layers])
    for layer, known in zip(layers, zip(*shapes, strict=True), strict=True):
        shape = next((shape for shape in known if shape is not None), None)
        if shape is None:
            continue
        own = layer.moments
        if own is None:
            own = torch.zeros(shape, dtype=torch.float64, device=layer.parameters[0].device)
        counts = torch.tensor([layer.positions, layer.power], dtype=torch.float64, device="cpu")
        layer.moments, whole = ranks.summed("a layer", [own, counts])
        layer.positions, layer.power = int(whole[0]), float(whole[1])


def _hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def add(gradient: Tensor) -> None:
        layer.power += float(gradient.double().square().sum())

    def heard(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            layer.hear(inputs[0])
            if output.requires_grad:
                output.register_hook(add)

    return heard
