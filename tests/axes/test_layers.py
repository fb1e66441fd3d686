"""Layers with weights: convolutions of every kind, linear layers, normalisation, and what reads them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.axes.harness import Case, Net, check_exact, check_groups


def around(*layers: nn.Module, ends: tuple[int, int] = (8, 8)) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, ends[0], 1), *layers, nn.Conv2d(ends[1], 4, 1))


def _writes_statistics() -> bool:
    """Older versions of torch write running statistics in eval mode too, as they were; what is written to stays."""
    norm = nn.InstanceNorm2d(2, affine=True, track_running_stats=True).eval()
    assert norm.running_mean is not None
    before = norm.running_mean._version
    norm(torch.zeros(1, 2, 2, 2))
    return norm.running_mean._version > before


def weight_standardised(m: Net, x: torch.Tensor) -> torch.Tensor:
    w = m.a.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return m.b(F.conv2d(x, w, m.a.bias))


def normalised_consumer(m: Net, x: torch.Tensor) -> torch.Tensor:
    return F.linear(m.a(x), F.normalize(m.b, dim=1))


CASES = {
    "conv 1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 1.weight:0 3.weight:1* @ 3"},
        shape=(2, 3, 9),
    ),
    "conv 2d": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, dilation=2, padding="same")
        ),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 1.weight:0 2.weight:1* @ 2"},
    ),
    "conv 3d": Case(
        lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 4, 2)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 1.weight:0 2.weight:1* @ 2"},
        shape=(2, 3, 5, 5, 5),
    ),
    "conv, reflected border": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        ),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:1* @ 1"},
    ),
    "conv without bias": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)),
        {"0": "8: 0.weight:0 1.weight:1* @ 1"},
    ),
    "conv without batch dimension": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:1* @ 1"},
        shape=(3, 8, 8),
    ),
    "transposed conv": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 4, 1)
        ),
        {"0": "8: 0.bias:0 0.weight:1 2.weight:0* @ 2", "2": "6: 2.bias:0 2.weight:1 3.weight:1* @ 3"},
    ),
    "transposed conv 1d": Case(
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 8, 3), nn.ConvTranspose1d(8, 4, 2)),
        {"0": "8: 0.bias:0 0.weight:1 1.weight:0* @ 1"},
        shape=(2, 3, 9),
    ),
    "transposed conv 3d": Case(
        lambda: nn.Sequential(nn.ConvTranspose3d(3, 8, 2), nn.ConvTranspose3d(8, 4, 2)),
        {"0": "8: 0.bias:0 0.weight:1 1.weight:0* @ 1"},
        shape=(2, 3, 3, 3, 3),
    ),
    "grouped transposed conv": Case(
        lambda: around(nn.ConvTranspose2d(8, 6, 3, groups=2), ends=(8, 6)),
        {"0": "4: 0.bias:0x2 0.weight:0x2 1.weight:0*x2 @ 1x2", "1": "3: 1.bias:0x2 1.weight:1 2.weight:1*x2 @ 2x2"},
    ),
    "transposed conv in many groups": Case(
        lambda: around(nn.ConvTranspose2d(8, 12, 3, groups=4), ends=(8, 12)),
        {"0": "4: 0.bias:0x2 0.weight:0x2 1.bias:0x3 1.weight:0x2 2.weight:1*x3 @ 2x3"},
        {"1.weight:1": "whole groups"},
    ),
    "depthwise transposed conv": Case(
        lambda: around(nn.ConvTranspose2d(8, 8, 2, 2, groups=8, bias=False)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:0 2.weight:1* @ 2"},
    ),
    "depthwise": Case(
        lambda: around(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
        {
            "0": (
                "8: 0.bias:0 0.weight:0 1.bias:0 1.weight:0 2.bias:0 2.running_mean:0 2.running_var:0 2.weight:0 "
                "3.weight:1* @ 3"
            )
        },
    ),
    "depthwise with multiplier": Case(
        lambda: around(nn.Conv2d(8, 24, 3, groups=8), ends=(8, 24)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0x3 1.weight:0x3 2.weight:1*x3 @ 2x3"},
    ),
    "grouped, as many groups as inputs of each": Case(
        lambda: around(nn.Conv2d(16, 8, 3, groups=4), ends=(16, 8)),
        {"0": "4: 0.bias:0x4 0.weight:0x4 1.bias:0x2 1.weight:0x2 2.weight:1*x2 @ 2x2"},
    ),
    "grouped, few groups": Case(
        lambda: around(nn.Conv2d(12, 6, 3, groups=2), ends=(12, 6)),
        {"0": "6: 0.bias:0x2 0.weight:0x2 1.weight:1* @ 1x2", "1": "3: 1.bias:0x2 1.weight:0x2 2.weight:1*x2 @ 2x2"},
    ),
    "grouped twice": Case(
        lambda: around(nn.Conv2d(12, 12, 1, groups=2), nn.ReLU(), nn.Conv2d(12, 12, 1, groups=3), ends=(12, 12)),
        {
            "0": "6: 0.bias:0x2 0.weight:0x2 1.weight:1* @ 1x2",
            "1": "2: 1.bias:0x6 1.weight:0x6 3.weight:1*x2 @ 3x6",
            "3": "4: 3.bias:0x3 3.weight:0x3 4.weight:1*x3 @ 4x3",
        },
    ),
    "grouped, then depthwise": Case(
        lambda: around(nn.Conv2d(8, 16, 1, groups=2), nn.Conv2d(16, 16, 3, groups=16), ends=(8, 16)),
        {
            "0": "4: 0.bias:0x2 0.weight:0x2 1.weight:1* @ 1x2",
            "1": "8: 1.bias:0x2 1.weight:0x2 2.bias:0x2 2.weight:0x2 3.weight:1*x2 @ 3x2",
        },
    ),
    "linear": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 1.weight:0 3.weight:1* @ 3"},
        shape=(6, 5),
    ),
    "linear on tokens": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4, bias=False)),
        {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2"},
        shape=(2, 7, 5),
    ),
    "linear without batch dimension": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)),
        {"0": "8: 0.bias:0 0.weight:0 1.weight:1* @ 1"},
        shape=(5,),
    ),
    "bilinear, of one layer twice": Case(
        lambda: Net(lambda m, x: m.b(m.a(x), m.a(x)), a=nn.Linear(5, 8), b=nn.Bilinear(8, 8, 3)),
        {},
        {"a.weight:0": "_trilinear in b reads nothing that could be tapped"},
        shape=(2, 5),
    ),
    "batch norm without affine": Case(
        lambda: around(nn.BatchNorm2d(8, affine=False)),
        {"0": "8: 0.bias:0 0.weight:0 1.running_mean:0 1.running_var:0 2.weight:1* @ 2"},
    ),
    "batch norm without statistics": Case(
        lambda: around(nn.BatchNorm2d(8, track_running_stats=False)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.weight:0 2.weight:1* @ 2"},
    ),
    "instance norm": Case(lambda: around(nn.InstanceNorm2d(8)), {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2"}),
    "instance norm, affine": Case(
        lambda: around(nn.InstanceNorm2d(8, affine=True)),
        {"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.weight:0 2.weight:1* @ 2"},
    ),
    "instance norm, statistics": Case(
        lambda: around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        *(
            ({}, {"0.weight:0": "1.running_mean is written to by copy_"})
            if _writes_statistics()
            else ({"0": "8: 0.bias:0 0.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 1.weight:0 2.weight:1* @ 2"},)
        ),
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
        {},
        {"0.weight:0": "layer norm runs over it"},
        shape=(6, 5),
    ),
    "layer norm over space": Case(
        lambda: around(nn.LayerNorm((8, 8))), {"0": "8: 0.bias:0 0.weight:0 2.weight:1* @ 2"}
    ),
    "layer norm over channels and space": Case(
        lambda: around(nn.LayerNorm((8, 8, 8))), {}, {"0.weight:0": "layer norm"}
    ),
    "group norm": Case(
        lambda: around(nn.GroupNorm(4, 8)),
        {"0": "4: 0.bias:0x2 0.weight:0x2 1.bias:0x2 1.weight:0x2 2.weight:1*x2 @ 2x2"},
    ),
    "group norm of one group": Case(lambda: around(nn.GroupNorm(1, 8)), {}, {"0.weight:0": "group norm runs over it"}),
    "group norm without weights": Case(
        lambda: around(nn.GroupNorm(4, 8, affine=False)), {"0": "4: 0.bias:0x2 0.weight:0x2 2.weight:1*x2 @ 2x2"}
    ),
    "local response norm": Case(
        lambda: around(nn.LocalResponseNorm(3)), {}, {"0.weight:0": "is slid over by avg_pool3d"}
    ),
    "rms norm, fused": Case(
        lambda: Net(
            lambda m, x: m.b(torch.ops.aten._fused_rms_norm(m.a(x), [8], m.g, 1e-5)[0]),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, 4),
            g=nn.Parameter(torch.ones(8)),
        ),
        {},
        {"a.weight:0": "(RMS norm|mean) runs over it"},
        shape=(2, 5),
    ),
    "rms norm": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8), nn.Linear(8, 4)),
        {},
        {"0.weight:0": "mean in 1 runs over it"},
        shape=(6, 5),
    ),
    "functional linear": Case(
        lambda: Net(
            lambda m, x: F.linear(F.linear(x, m.a, m.bias).relu(), m.b),
            a=nn.Parameter(torch.randn(8, 5)),
            bias=nn.Parameter(torch.randn(8)),
            b=nn.Parameter(torch.randn(4, 8)),
        ),
        {"a": "8: a:0 b:1* bias:0 @ b"},
        shape=(2, 5),
    ),
    "functional linear, read by a module": Case(
        lambda: Net(
            lambda m, x: m.b(x @ m.a + m.bias),
            a=nn.Parameter(torch.randn(5, 8)),
            bias=nn.Parameter(torch.randn(8)),
            b=nn.Linear(8, 4),
        ),
        {"a": "8: a:1 b.weight:1* bias:0 @ b"},
        shape=(2, 5),
    ),
    "functional conv, read by a module": Case(
        lambda: Net(
            lambda m, x: m.b(F.conv2d(x, m.a).relu()), a=nn.Parameter(torch.randn(8, 3, 3, 3)), b=nn.Conv2d(8, 4, 1)
        ),
        {"a": "8: a:0 b.weight:1* @ b"},
    ),
    "weight standardised producer": Case(
        lambda: Net(weight_standardised, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1)),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b"},
    ),
    "normalised consumer": Case(
        lambda: Net(normalised_consumer, a=nn.Linear(5, 8), b=nn.Parameter(torch.randn(4, 8))),
        {"a": "8: a.bias:0 a.weight:0 b:1* @ b"},
        shape=(2, 5),
        renormalised=True,
    ),
    "weight norm": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 2)),
        {
            "0": "8: 0.bias:0 0.weight:0 1.parametrizations.weight.original1:1* @ 1",
            "1": "6: 1.bias:0 1.parametrizations.weight.original0:0 1.parametrizations.weight.original1:0 "
            "2.weight:1* @ 2",
        },
        shape=(2, 5),
        renormalised=True,
    ),
    "spectral norm": Case(
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 2)
        ),
        {},
        shape=(2, 5),
    ),
    "weight in pieces": Case(
        lambda: Net(
            lambda m, x: torch.cat([F.linear(m.a(x), w) for w in m.b.weight.chunk(2)], -1),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, 4),
        ),
        {"a": "8: a.bias:0 a.weight:0 b.weight:1* @ b.weight b.weight#1"},
        shape=(2, 5),
    ),
    "attention by hand": Case(
        lambda: Net(
            lambda m, x: m.out(torch.softmax(m.q(x) @ m.k(x).mT, -1) @ m.v(x)),
            q=nn.Linear(5, 6),
            k=nn.Linear(5, 6),
            v=nn.Linear(5, 8),
            out=nn.Linear(8, 3),
        ),
        {"v": "8: out.weight:1* v.bias:0 v.weight:0 @ out"},
        {"q.weight:0": "two activations are contracted"},
        shape=(2, 7, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])
