"""The definition of the Taylor sums, in plain torch."""

from __future__ import annotations

from torch import Tensor

from fairkern.surroundings import uncast


@uncast
def taylor_sums(act: Tensor, grad: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Σ a·g, Σ_samples |Σ a·g| and Σ a per channel; samples are dimension 0, `dim` ≥ 1."""
    positions = [d for d in range(1, act.ndim) if d != dim]
    product = act * grad
    per_sample = product.sum(positions) if positions else product
    return per_sample.sum(0), per_sample.abs().sum(0), act.sum([0, *positions])


def add(out: tuple[Tensor, ...], sums: tuple[Tensor, ...], scale: float) -> None:
    """Running sums: the first two take `scale` times the new ones, the third the new one as it is."""
    for total, new, factor in zip(out, sums, (scale, scale, 1.0), strict=True):
        total += new.to(total.dtype) * factor
