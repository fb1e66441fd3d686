"""First-order Taylor term of removing a unit: the R-score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check, _triton
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.taylor import native, reference
from fairkern.options import instance, iterable, real, whole

__all__ = ["TaylorSums", "taylor", "taylor_many", "taylor_sums"]


_FITTED = "_fitted"  # of running sums: where they lay, and for what, when they were looked at


class TaylorReduction(str, Enum):
    """How the samples' Taylor terms are added."""

    SIGNED = "signed"
    PER_SAMPLE = "per_sample"


@dataclass(frozen=True)
class TaylorSums:
    """Sums per channel, each [C]: of one batch, or running over several."""

    signed: Tensor  # Σ over samples and positions of act · grad
    per_sample: Tensor  # Σ over samples of |Σ over positions of act · grad|
    activation: Tensor  # Σ over samples and positions of act: the mean, times their number

    @classmethod
    def zeros(
        cls, channels: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> TaylorSums:
        """Running sums to begin with, for `out=`."""
        channels, dtype = whole("channels", channels, 0, 2**31), instance("dtype", dtype, torch.dtype, "one of torch")
        return cls(*torch.zeros(3, channels, dtype=dtype, device=_check.device(device)).unbind())

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor]:
        """signed, per_sample, activation."""
        return self.signed, self.per_sample, self.activation


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
    sums = _sums(_Job(act, grad, dim, None), 1.0, _resolved(act, backend))
    return sums.signed if kind is TaylorReduction.SIGNED else sums.per_sample


def taylor_sums(
    act: Tensor,
    grad: Tensor,
    dim: int = 1,
    *,
    out: TaylorSums | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> TaylorSums:
    """Both reductions of `taylor` and the sum of `act`, from the same read of both tensors.

    Arguments, dtypes, errors and cost as for `taylor`; `dim` must not be 0, which holds the samples.

    Args:
        out: running sums that the new ones are added to, in place; contiguous [C] each, on the device of `act`, all
            float64 or all of the result's dtype. `TaylorSums.zeros(C)` begins. Default: new ones.
        scale: factor of `signed` and `per_sample` (not of `activation`) before they are added or returned: the sample
            count of a batch whose loss is a mean.

    Returns:
        `out` if given, otherwise new sums, float32, or float64 for float64 input.

    Example:
        >>> import torch
        >>> sums = taylor_sums(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5))
        >>> sums.signed, sums.per_sample, sums.activation
        (tensor([-16., -16., -16.]), tensor([16., 16., 16.]), tensor([32., 32., 32.]))
        >>> running = TaylorSums.zeros(3)
        >>> for _ in range(2):
        ...     _ = taylor_sums(torch.ones(1, 3, 4), torch.ones(1, 3, 4), out=running, scale=10.0)
        >>> running.signed, running.activation
        (tensor([80., 80., 80.], dtype=torch.float64), tensor([8., 8., 8.], dtype=torch.float64))
    """
    scale, job = real("scale", scale), _Job.of(act, grad, dim, out, "")
    return _sums(job, scale, _resolved(job.act, backend))


def taylor_many(
    jobs: Iterable[tuple[Tensor, Tensor, int]],
    *,
    out: Sequence[TaylorSums] | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> list[TaylorSums]:
    """`taylor_sums` of many layers: (act, grad, dim) each; on a GPU in two launches per kind of layout, not per layer.

    Dtypes, errors and cost as there; `out` holds one running sum per job, no two of them the same memory. Every job is
    checked before the first is computed.

    Example:
        >>> import torch
        >>> x, y = torch.ones(2, 3), torch.ones(2, 4, 5)
        >>> [sums.signed for sums in taylor_many([(x, x, 1), (y, -y, 2)])]
        [tensor([2., 2., 2.]), tensor([-8., -8., -8., -8., -8.])]
    """
    scale, given = real("scale", scale), _check.jobs(jobs, "act, grad, dim")
    if out is not None:
        iterable("out", out, "running sums, one per job")
    outs: Sequence[TaylorSums | None] = [None] * len(given) if out is None else list(out)
    if len(outs) != len(given):
        raise InputError(f"out holds {len(outs)} running sums for {len(given)} jobs; expected one per job")
    checked = [
        _Job.of(act, grad, dim, total, f" of job {number}")
        for number, ((act, grad, dim), total) in enumerate(zip(given, outs, strict=True))
    ]
    chosen = [_resolved(job.act, backend) for job in checked]
    together = [job for job, which in zip(checked, chosen, strict=True) if which is Backend.TRITON]
    made = iter(_by_triton(together, scale) if together else ())
    return [
        next(made) if which is Backend.TRITON else _sums(job, scale, which)
        for job, which in zip(checked, chosen, strict=True)
    ]


@dataclass(frozen=True)
class _Job:
    """One layer, checked."""

    act: Tensor
    grad: Tensor
    dim: int
    out: TaylorSums | None

    @classmethod
    def of(cls, act: object, grad: object, dim: int, out: TaylorSums | None, which: str) -> _Job:
        a, g, dim = _checked(act, grad, dim)
        if dim == 0:
            raise InputError(f"dim{which} is 0, which holds the samples; move the channels to another dimension")
        if out is not None:
            _check_out(out, a, dim)
        return cls(a, g, dim, out)

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return None if self.out is None else self.out.fields


def _resolved(act: Tensor, backend: str) -> Backend:
    return resolve("taylor", backend, act.device, {Backend.TRITON: _triton.unsupported(act.dtype)})


def _by_triton(jobs: Sequence[_Job], scale: float) -> list[TaylorSums]:
    from fairkern.ops.taylor import triton_kernel

    made = triton_kernel.taylor_many([(job.act, job.grad, job.dim, job.fields) for job in jobs], scale)
    return [TaylorSums(*sums) for sums in made]


def _sums(job: _Job, scale: float, which: Backend) -> TaylorSums:
    if which is Backend.TRITON:
        return _by_triton([job], scale)[0]
    if which is Backend.NATIVE:
        return TaylorSums(*native.taylor_sums(job.act, job.grad, job.dim, job.fields, scale))
    wide = _check.accumulator(job.act.dtype)
    sums = reference.taylor_sums(job.act.to(wide), job.grad.to(wide), job.dim)
    total = job.out or TaylorSums(*(torch.zeros_like(new) for new in sums))
    reference.add(total.fields, sums, scale)
    return total


def _check_out(out: TaylorSums, act: Tensor, dim: int) -> None:
    """A pass adds to the same sums again and again: those that fitted, and lie where they lay, still do."""
    instance("out", out, TaylorSums, "TaylorSums, as from TaylorSums.zeros(channels)")
    wide = _check.accumulator(act.dtype)
    known = vars(out).get(_FITTED)
    if known is not None and known == (_where(out), act.shape[dim], act.device, wide):
        return
    expected, dtypes = (act.shape[dim],), (torch.float64, wide)
    for name, total in zip(("out.signed", "out.per_sample", "out.activation"), out.fields, strict=True):
        _check.tensor(name, total)
        fits = total.dtype in dtypes and total.dtype == out.signed.dtype
        if not fits or total.shape != expected or not total.is_contiguous() or total.device != act.device:
            raise InputError(
                f"{name} is {total.dtype} {tuple(total.shape)} on {total.device}; expected contiguous "
                f"({act.shape[dim]},) on {act.device}, all three float64 or all {wide}"
            )
    vars(out)[_FITTED] = (_where(out), act.shape[dim], act.device, wide)


def _where(out: TaylorSums) -> list[tuple[object, ...]]:
    return [(of.data_ptr(), of.dtype, of.shape, of.stride(), of.requires_grad) for of in out.fields]


def _checked(act: object, grad: object, dim: int) -> tuple[Tensor, Tensor, int]:
    a, g = _check.floating("act", act), _check.floating("grad", grad)
    if a.device != g.device:
        _check.same_device(act=a, grad=g)
    if a.shape != g.shape or a.dtype != g.dtype:
        raise InputError(
            f"act is {a.dtype} {tuple(a.shape)} and grad {g.dtype} {tuple(g.shape)}; expected the same dtype and shape"
        )
    if a.numel() == 0:
        raise InputError(f"act has shape {tuple(a.shape)}; expected a tensor with elements")
    return a, g, _check.dimension("dim", dim, a.ndim)
