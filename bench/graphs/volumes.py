"""Pieces from volumes to volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.images import activation, block
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_volume = piece(Kind.VOLUME)


@_volume
def conv_3d(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv3d(x[1], d.width(), 3, padding=1, bias=d.chance())


@_volume
def block_3d(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return nn.Sequential(nn.Conv3d(x[1], n, 1), d.of(nn.BatchNorm3d(n), nn.GroupNorm(d.divisor(n), n)), activation(d))


@_volume
def factored(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return nn.Sequential(
        nn.Conv3d(x[1], n, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.Conv3d(n, d.width(), (3, 1, 1), padding=(1, 0, 0)),
    )


@_volume
def residual_3d(d: Draw, x: Shape) -> nn.Module:
    c, n = x[1], d.width()
    return built(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Conv3d(c, n, 3, padding=1), b=nn.Conv3d(n, c, 1))


@_volume
def depthwise_3d(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv3d(x[1], x[1], 3, padding=1, groups=x[1])


@_volume
def transposed_3d(d: Draw, x: Shape) -> nn.Module:
    return nn.ConvTranspose3d(x[1], d.width(), 3, padding=1)


@_volume
def frame_by_frame(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = m.conv(x.transpose(1, 2).reshape(b * t, c, h, w))
        return y.view(b, t, -1, h, w).transpose(1, 2)

    return built(forward, conv=block(d, x[1], d.width()))


@_volume
def shifted_in_time(d: Draw, x: Shape) -> nn.Module | None:
    fold = x[1] // 4
    if not fold:
        return None

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return out

    return built(forward)
