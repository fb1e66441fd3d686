"""First-order Taylor term of removing a unit: the R-score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check, _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.taylor import native, reference

__all__ = ["TaylorSums", "taylor", "taylor_many", "taylor_sums"]


class TaylorReduction(str, Enum):
    """How the samples' Taylor terms are added."""

    SIGNED = "signed"
    PER_SAMPLE = "per_sample"


@dataclass(frozen=True)
class TaylorSums:
    """Sums per channel over one batch, each [C]; add those of several batches."""

    signed: Tensor  # Σ over samples and positions of act · grad
    per_sample: Tensor  # Σ over samples of |Σ over positions of act · grad|
    activation: Tensor  # Σ over samples and positions of act: the mean, times their number


def taylor(act: Tensor, grad: Tensor, dim: int = 1, reduction: str = "signed", *, backend: str = "auto") -> Tensor:
    """Per channel, the sum of `act · grad`: to first order, what the loss loses when the channel becomes zero.

    "signed" returns the raw sum `Σ act·grad`, not its absolute value, so that batches can be added first: the
    R-score is `abs` of the total over all batches. "per_sample" returns `Σ_s |Σ_pos act·grad|`, samples being
    dimension 0; the total over batches is the R-score as it is. For a loss that is a mean over its batch, multiply
    by the batch's sample count before adding.

    Args:
        act: activation at the tap, any shape [N, …, C, …] and strides; float32, float64, bfloat16 or float16.
        grad: gradient of the loss with respect to `act`: same shape, dtype and device.
        dim: the channel dimension. "per_sample" needs another one than 0.
        reduction: "signed" or "per_sample".
        backend: "auto", "native", "triton" or "reference".

    Returns:
        [C], in the unit of the loss; float32, or float64 for float64 input. NaN and Inf pass through.

    Raises:
        InputError: shapes, dtypes or dimension that cannot be used. BackendError: the backend cannot run here.

    Cost: one read of both tensors. The same bits on any number of threads.

    Source: arXiv 2508.02291, Reconstruction Score; Molchanov et al., arXiv 1611.06440.

    Example:
        >>> import torch
        >>> act, grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> taylor(act, grad), taylor(act, grad, reduction="per_sample")
        (tensor([-2.,  2.]), tensor([4., 6.]))
    """
    kind = _check.option("reduction", reduction, TaylorReduction)
    act, grad, dim = _checked(act, grad, dim)
    if dim == 0:
        if kind is TaylorReduction.PER_SAMPLE:
            raise InputError("dim is 0, which holds the samples of reduction='per_sample'; move the channels elsewhere")
        act, grad, dim = act.unsqueeze(0), grad.unsqueeze(0), 1
    sums = _sums(act, grad, dim, _resolved(act, backend))
    return sums.signed if kind is TaylorReduction.SIGNED else sums.per_sample


def taylor_sums(act: Tensor, grad: Tensor, dim: int = 1, *, backend: str = "auto") -> TaylorSums:
    """Both reductions of `taylor` and the sum of `act`, from the same read of both tensors.

    Arguments, dtypes, errors and cost as for `taylor`; `dim` must not be 0, which holds the samples.

    Example:
        >>> import torch
        >>> sums = taylor_sums(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5))
        >>> sums.signed, sums.per_sample, sums.activation
        (tensor([-16., -16., -16.]), tensor([16., 16., 16.]), tensor([32., 32., 32.]))
    """
    act, grad, dim = _checked(act, grad, dim)
    if dim == 0:
        raise InputError("dim is 0, which holds the samples; move the channels to another dimension")
    return _sums(act, grad, dim, _resolved(act, backend))


def taylor_many(jobs: Iterable[tuple[Tensor, Tensor, int]], *, backend: str = "auto") -> list[TaylorSums]:
    """`taylor_sums` of many layers: (act, grad, dim) each; on a GPU in two launches per kind of layout, not per layer.

    Dtypes, errors and cost as there. Every job is checked before the first is computed.

    Example:
        >>> import torch
        >>> x, y = torch.ones(2, 3), torch.ones(2, 4, 5)
        >>> [sums.signed for sums in taylor_many([(x, x, 1), (y, -y, 2)])]
        [tensor([2., 2., 2.]), tensor([-8., -8., -8., -8., -8.])]
    """
    checked = [_checked(act, grad, dim) for act, grad, dim in jobs]
    for number, (_, _, dim) in enumerate(checked):
        if dim == 0:
            raise InputError(f"dim of job {number} is 0, which holds the samples; move the channels elsewhere")
    chosen = [_resolved(act, backend) for act, _, _ in checked]
    together = [job for job, which in zip(checked, chosen, strict=True) if which is Backend.TRITON]
    made = iter(_by_triton(together) if together else ())
    return [
        next(made) if which is Backend.TRITON else _sums(*job, which)
        for job, which in zip(checked, chosen, strict=True)
    ]


def _resolved(act: Tensor, backend: str) -> Backend:
    return resolve("taylor", backend, act.device, {Backend.TRITON: _triton.unsupported(act.dtype)})


def _by_triton(jobs: Sequence[tuple[Tensor, Tensor, int]]) -> list[TaylorSums]:
    from fairkern.ops.taylor import triton_kernel

    return [TaylorSums(*sums) for sums in triton_kernel.taylor_many(jobs)]


def _sums(act: Tensor, grad: Tensor, dim: int, which: Backend) -> TaylorSums:
    if which is Backend.TRITON:
        return _by_triton([(act, grad, dim)])[0]
    if which is Backend.NATIVE:
        return TaylorSums(*native.taylor_sums(act, grad, dim))
    wide = _check.accumulator(act.dtype)
    return TaylorSums(*reference.taylor_sums(act.to(wide), grad.to(wide), dim))


def _checked(act: object, grad: object, dim: int) -> tuple[Tensor, Tensor, int]:
    a, g = _check.floating("act", act), _check.floating("grad", grad)
    _check.same_device(act=a, grad=g)
    if a.shape != g.shape or a.dtype != g.dtype:
        raise InputError(
            f"act is {a.dtype} {tuple(a.shape)} and grad {g.dtype} {tuple(g.shape)}; expected the same dtype and shape"
        )
    if a.numel() == 0:
        raise InputError(f"act has shape {tuple(a.shape)}; expected a tensor with elements")
    return a, g, _check.dimension("dim", dim, a.ndim)
