"""Make a copy of a model tell: no constant parameter, and normalisation that keeps every layer's signal alive."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.compact.descriptors import tensors_of


def stir(model: nn.Module, seed: int, choosing: Set[str] = frozenset()) -> list[Tensor]:
    """Replace in place what a fresh model holds constant: gammas of one or zero, biases of zero, empty tables. Returns
    those tensors.

    Positions with equal values can be confused without any effect, and a zero gamma switches its branch off.
    Exactly constant floating parameters become: biases, their value plus noise of 0.1; other vectors and
    scalars, between 0.5 and 1.5 of their value (of 0.5 where it is below 0.05, such as a layer scale); the
    rest, their value plus noise of the size of an initialisation. Affine buffers of frozen normalisation too.

    `choosing`: vectors, buffers too, that say with an expert's score whether it is chosen. They get noise that is small
    beside scores: the same experts for all tokens would hide which of them went.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    frozen = {
        id(value)
        for module in model.modules()
        if _has_statistics(module)
        for key, value in module._buffers.items()
        if key in ("weight", "bias")
    }
    stirred = []
    for held in tensors_of(model):
        tensor = held.tensor
        chooses = not choosing.isdisjoint(held.names)
        if not isinstance(tensor, nn.Parameter) and id(tensor) not in frozen and not chooses:
            continue
        if not tensor.is_floating_point() or tensor.numel() == 0 or not _constant(tensor):
            continue
        value = float(tensor.detach().reshape(-1)[0])
        vector = tensor.numel() == max(tensor.shape, default=1)
        if vector and not chooses and not held.names[0].rpartition(".")[2].startswith("bias"):
            base = value if abs(value) >= 0.05 else 0.5
            new = base * (0.5 + torch.rand(tensor.shape, dtype=torch.float64, generator=generator, device="cpu"))
        else:
            scale = 0.01 if chooses else 0.1 if vector else max(0.02, (tensor.numel() / tensor.shape[0]) ** -0.5)
            new = value + scale * torch.randn(tensor.shape, dtype=torch.float64, generator=generator, device="cpu")
        tensor.data.copy_(new)
        stirred.append(tensor)
    return stirred


@contextmanager
def calibrate(model: nn.Module, seed: int) -> Iterator[None]:
    """Within it, every normalisation with running statistics takes those of what it is given, then perturbs them.

    One forward pass in eval mode so leaves each layer's activations at unit size: otherwise the signal of early
    layers may fade through a deep fresh network below any tolerance. The perturbation (mean by a tenth of the
    deviation, variance by a factor between 0.5 and 1.5) makes every position distinct.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        with torch._C._DisableTorchDispatch():  # none of the model's operators, for a mode that looks at those
            _take(module, args)

    def _take(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
            return
        x = args[0].detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [dim for dim in range(x.dim()) if dim != 1]
        if x.numel() == 0 or x.shape[1] != len(module.running_var):  # type: ignore[arg-type]
            return
        mean = x.mean(over, keepdim=True)
        variance = (x - mean).square_().mean(over)  # a tenth of the time of `var`
        mean = mean.flatten()
        whole = (variance + mean.square()).mean()
        if not torch.isfinite(whole):
            return
        whole = whole if whole > 0 else torch.ones_like(whole)
        variance = torch.where(variance > 1e-6 * whole, variance, whole)
        noise = torch.randn(len(mean), dtype=torch.float32, generator=generator, device="cpu").to(mean)
        factor = (0.5 + torch.rand(len(mean), dtype=torch.float32, generator=generator, device="cpu")).to(mean)
        module.running_mean.data.copy_(mean + 0.1 * variance.sqrt() * noise)  # type: ignore[operator]
        module.running_var.data.copy_(variance * factor)  # type: ignore[operator]

    handles = [m.register_forward_pre_hook(take) for m in model.modules() if _has_statistics(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    mean, variance = module._buffers.get("running_mean"), module._buffers.get("running_var")
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and mean.dim() == variance.dim() == 1


def _constant(tensor: Tensor) -> bool:
    flat = tensor.detach().reshape(-1)
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())
