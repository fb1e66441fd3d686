"""Max pooling along one dimension and then the other: without looking for places forward, and fast backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_FLOATS = (torch.float32, torch.float64)


@contextlib.contextmanager
def quick_maxima(model: nn.Module) -> Iterator[None]:
    """Inside, max poolings of images of `model` give their maxima without noting where these lie: windows of any kind
    in front of all that asks for gradients, windows side by side everywhere.

    The same values and gradients: of equal numbers the first of a window, row by row, has it, as torch's. (Of two zeros
    of different sign either may be given, and gradients of no place may be negative zeros.) Forward it takes about a
    sixth of the time, since torch's own walks every window with a branch for each number in it, both ways a third.
    Modules that override `forward` keep theirs; on a GPU, and with channels last, torch's own is fast and is used.
    """
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            if isinstance(module, nn.MaxPool2d) and _is_plain(module):
                vars(module)["forward"] = partial(_forward, module)
                changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    ordinary = type(pool).forward is nn.MaxPool2d.forward and "forward" not in vars(pool)
    sizes = all(_is_size(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    return ordinary and sizes and not (pool.return_indices or pool.ceil_mode) and pool.dilation in (1, (1, 1))


def _is_size(value: object) -> bool:
    """Whether it is an int or several, and nothing else that torch takes for one (of numpy, a tensor)."""
    return all(type(n) is int for n in (value if isinstance(value, (tuple, list)) else (value,)))


def _forward(pool: nn.MaxPool2d, input: Tensor) -> Tensor:
    of_image, kernel, padding = input.shape[-2:], _both(pool.kernel_size), _both(pool.padding)
    stride = _both(pool.stride)
    if _suits(input) and all(map(_fits, of_image, kernel, padding)):  # if not, its error is torch's
        if not (input.requires_grad and torch.is_grad_enabled()):
            for dim, size, step, beside in zip((-2, -1), kernel, stride, padding, strict=True):
                input = _along(input, dim, size, step, beside)
            return input
        if stride == kernel and padding == (0, 0) and min(kernel) > 1:
            made: Tensor = _SideBySide.apply(input, kernel)
            return made
    return type(pool).forward(pool, input)


def _fits(length: int, kernel: int, padding: int) -> bool:
    return 2 * padding <= kernel <= length + 2 * padding


def _suits(input: Tensor) -> bool:
    plain = type(input) is Tensor and input.device.type == "cpu" and input.dtype in _FLOATS
    if forward_ad._current_level >= 0 or torch._C._functorch.is_functorch_wrapped_tensor(input):
        return False  # what is done here is known to autograd alone
    return plain and input.ndim in (3, 4) and input.is_contiguous() and input.numel() > 0


def _both(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _along(x: Tensor, dim: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Maxima of windows along one dimension, in memory of their own."""
    length = x.shape[dim]
    windows = (length + 2 * padding - kernel) // stride + 1
    parts = []  # of every place in a window: the first window in which it is no padding, and what lies there
    for place in range(kernel):
        first = max(0, -((place - padding) // stride))
        last = min(windows - 1, (length - 1 + padding - place) // stride)
        if first <= last:
            begin = first * stride + place - padding
            parts.append((first, x.movedim(dim, 0)[begin : begin + (last - first) * stride + 1 : stride]))
    parts.sort(key=lambda part: -len(part[1]))
    shape = list(x.shape)
    shape[dim] = windows
    made = torch.empty(shape, dtype=x.dtype, device=x.device)
    whole = [parts.pop(0)[1].movedim(0, dim) for _, part in parts[:2] if len(part) == windows]
    if len(whole) == 2:
        torch.maximum(*whole, out=made)
    else:
        made.copy_(whole[0]) if whole else made.fill_(-torch.inf)
    for first, part in parts:
        into = made.movedim(dim, 0)[first : first + len(part)]
        torch.maximum(into, part, out=into)
    return made


class _SideBySide(torch.autograd.Function):
    """Maxima of windows that lie side by side: of the columns in each row of a window, then of its rows.

    A gradient goes back the same way, to the first row that has the maximum and there to the first column.
    """

    @staticmethod
    def forward(ctx: object, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        rows = _maxima(_places(x, -1, kernel[1]))
        made = _maxima(_places(rows, -2, kernel[0]))
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        ctx.rows, ctx.made, ctx.kernel = rows, made.clone(), kernel  # type: ignore[attr-defined]  # made may be written to
        return made

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, made, kernel = ctx.rows, ctx.made, ctx.kernel  # type: ignore[attr-defined]
        if torch.is_grad_enabled():  # the gradient of a gradient is asked for
            indices = nn.functional.max_pool2d(x.detach(), kernel, return_indices=True)[1]
            into = torch.ops.aten.max_pool2d_with_indices_backward.default
            return into(grad, x, kernel, kernel, [0, 0], [1, 1], False, indices), None
        return _back(_back(grad, rows, made, -2, kernel[0]), x, rows, -1, kernel[1]), None


def _places(x: Tensor, dim: int, kernel: int) -> list[Tensor]:
    """The first number of every window along a dimension, the second ones, and so on."""
    whole = x.shape[dim] // kernel * kernel
    lines = x.movedim(dim, 0)
    return [lines[place:whole:kernel].movedim(0, dim) for place in range(kernel)]


def _maxima(places: Sequence[Tensor]) -> Tensor:
    made = torch.maximum(places[0], places[1])
    for place in places[2:]:
        torch.maximum(made, place, out=made)
    return made


def _back(grad: Tensor, x: Tensor, made: Tensor, dim: int, kernel: int) -> Tensor:
    """The gradient of `x`, whose windows along a dimension have the maxima `made`: the first as large has it."""
    found = torch.empty_like(x) if x.shape[dim] % kernel == 0 else torch.zeros_like(x)
    *places, last = _places(found, dim, kernel)
    for place, into in zip(_places(x, dim, kernel), places, strict=False):
        torch.mul(grad, place >= made, out=into)
        grad = torch.sub(grad, into, out=last if into is places[-1] else None)
    return found
