"""Fourier transforms, patches, sampling grids and complex views go past channels, or hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.axes.harness import Case, Net, check_exact, check_groups


def free(function: Callable[[Tensor], Any], per_unit: int = 1, units: int = 8) -> Case:
    """A function between two convolutions, of which `units` of `8 / units` channels can go."""
    made, read = (f"x{n}" if n > 1 else "" for n in (8 // units, per_unit))
    return Case(
        lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(units * per_unit, 4, 1)),
        {"a": f"{units}: a.bias:0{made} a.weight:0{made} b.weight:1*{read} @ b{read}"},
    )


def kept(reason: str, function: Callable[[Tensor], Any]) -> Case:
    return Case(free(function).model, {}, {"a.weight:0": reason})


def turned_pairs(x: Tensor) -> Tensor:
    """Rotary positions, as complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(3, (4, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones(4), torch.arange(4.0))).flatten(3).double()


def affine(x: Tensor) -> Tensor:
    theta = torch.eye(2, 3).double().expand(2, 2, 3) * 0.7
    return F.grid_sample(x, F.affine_grid(theta, [2, 1, 8, 8], align_corners=False), align_corners=False)


def steered(x: Tensor) -> Tensor:
    """A grid made of channels."""
    return F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)


def pairs_of_channels(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(F.fold(x.flatten(2), (16, 16), 2, stride=2).permute(0, 2, 3, 1).contiguous())
    return x * pairs.abs().mean((1, 2))[:, None, None, None]


def solved(x: Tensor) -> Tensor:
    """For every channel a triangular system over space."""
    return torch.linalg.solve_triangular(x, x.tril(), upper=False, unitriangular=True)


CASES = {
    "triangular systems": free(solved),
    "triangular systems, a column for every channel": free(
        lambda x: torch.linalg.solve_triangular(
            torch.ones(8, 8).double().tril(), x.permute(0, 2, 3, 1), upper=False
        ).permute(0, 3, 1, 2)
    ),
    "triangular systems from the right, a row for every channel": free(
        lambda x: torch.linalg.solve_triangular(
            torch.ones(8, 8).double().tril(), x.transpose(1, 2), upper=False, left=False
        ).transpose(1, 2)
    ),
    "triangular systems over channels": kept(
        "solve_triangular runs over it",
        lambda x: torch.linalg.solve_triangular(x.mT @ x, x.permute(0, 3, 1, 2), upper=True).permute(0, 2, 3, 1),
    ),
    "inverse matrices": free(lambda x: torch.linalg.inv(torch.eye(8).double() * 3 + x.tanh())),
    "matrix exponentials": free(lambda x: torch.linalg.matrix_exp(x * 0.1)),
    "Cholesky factors": free(lambda x: torch.linalg.cholesky(torch.eye(8).double() + x @ x.mT)),
    "inverse over channels": kept("runs over it", lambda x: torch.linalg.inv(x.transpose(1, 2)).transpose(1, 2)),
    "spectral gate": free(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(8, 8))),
    "complex transform": free(lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real),
    "spectrum": free(lambda x: torch.fft.rfft(x, dim=-1).abs()),
    "shifted spectrum": free(lambda x: torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3)).imag),
    "transform of channels": kept("is transformed by _fft_r2c", lambda x: x * torch.fft.rfft(x, dim=1).abs()[:, :1]),
    "transform of tokens and channels": kept(
        "is transformed by _fft_c2c", lambda x: torch.fft.fftn(x, dim=(1, 2)).real
    ),
    "patches": free(lambda x: F.unfold(x, 3, padding=1).unflatten(2, (8, 8)), per_unit=9),
    "patches summed": free(lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)),
    "patches weighted": free(
        lambda x: (F.unfold(x, 2, stride=2).unflatten(1, (-1, 4)) * 0.5).sum(2).unflatten(2, (4, 4))
    ),
    "folded": free(lambda x: F.fold(x.flatten(2), (16, 16), 2, stride=2), units=2),
    "windows": free(lambda x: x.unfold(2, 3, 1).unfold(3, 3, 2).amax((-1, -2))),
    "windows over channels": kept("is cut into windows", lambda x: x.unfold(1, 2, 2).sum(-1).repeat(1, 2, 1, 1)),
    "sampled": free(affine),
    "sampled, of channels": kept("is sampled", steered),
    "unpooled": free(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "rotary, complex": free(turned_pairs),
    "complex of two": free(lambda x: torch.complex(x, x * 2).abs()),
    "pairs of channels": kept("is read as real and imaginary", pairs_of_channels),
    "running maximum": free(lambda x: x.cummax(2)[0] + x.logcumsumexp(3)),
    "running maximum of channels": kept("cummax runs over it", lambda x: x.cummax(1)[0]),
    "median": free(
        lambda x: x.median(2, keepdim=True)[0] + x.kthvalue(2, 3, keepdim=True)[0] + x.mode(3, keepdim=True)[0]
    ),
    "quantities": free(
        lambda x: (
            x.nansum((2, 3), keepdim=True) + torch.aminmax(x, dim=2, keepdim=True)[0] + x.count_nonzero(3)[..., None]
        )
    ),
    "blurred with one kernel": free(
        lambda x: F.conv2d(x, torch.ones(1, 1, 3, 3).double().expand(x.shape[1], 1, 3, 3), groups=x.shape[1])
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


def mapped(m: Net, x: Tensor) -> Tensor:
    """A product for every place, batched by a function transform: its tensors have no memory to be known by."""
    y = torch.vmap(lambda one: torch.tanh(m.w @ one))(m.a(x).mean((2, 3)))
    return m.c(m.b(y).relu())


MAPPED = Case(
    lambda: Net(mapped, a=nn.Conv2d(3, 8, 1), w=nn.Parameter(torch.randn(6, 8)), b=nn.Linear(6, 5), c=nn.Linear(5, 2)),
    {"w": "6: b.weight:1* w:0 @ b", "b": "5: b.bias:0 b.weight:0 c.weight:1* @ c"},
    {"a.weight:0": "its consumer mm reads nothing that could be tapped"},
)


def test_code_batched_by_a_function_transform_keeps_what_it_reads() -> None:
    check_groups(MAPPED)
    check_exact(MAPPED)
