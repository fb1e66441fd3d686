"""Pieces of one layer or function from images to images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_image = piece(Kind.IMAGE)


def activation(d: Draw) -> nn.Module:
    return d.of(nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.Hardswish, nn.ELU)()


def norm(d: Draw, c: int) -> nn.Module:
    groups = d.divisor(c)
    return d.of(nn.BatchNorm2d(c), nn.GroupNorm(groups, c), nn.InstanceNorm2d(c, affine=True), nn.Identity())


def block(d: Draw, c: int, out: int, groups: int = 1) -> nn.Module:
    k = d.of(1, 3)
    return nn.Sequential(nn.Conv2d(c, out, k, 1, k // 2, bias=d.chance(), groups=groups), norm(d, out), activation(d))


@_image
def conv(d: Draw, x: Shape) -> nn.Module:
    k, step = d.of((1, 1), (3, 1), (3, 2)) if x[2] > 3 and x[2] % 2 == 0 else (3, 1)
    return nn.Conv2d(x[1], d.width(), k, step, k // 2, bias=d.chance())


@_image
def conv_norm_act(d: Draw, x: Shape) -> nn.Module:
    return block(d, x[1], d.width())


@_image
def dilated(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv2d(x[1], d.width(), 3, padding=2, dilation=2, padding_mode=d.of("zeros", "circular", "replicate"))


@_image
def grouped(d: Draw, x: Shape) -> nn.Module | None:
    groups = d.divisor(x[1])
    return nn.Conv2d(x[1], groups * d.of(1, 2, 3), 1, groups=groups) if groups > 1 else None


@_image
def depthwise(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv2d(x[1], x[1] * d.of(1, 1, 2), 3, padding=1, groups=x[1])


@_image
def depthwise_counted(d: Draw, x: Shape) -> nn.Module:
    c = x[1]
    return built(
        lambda m, x: F.conv2d(x, m.weight, padding=1, groups=x.shape[1]), weight=nn.Parameter(torch.randn(c, 1, 3, 3))
    )


@_image
def separable(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(x[1], x[1], 3, padding=1, groups=x[1]), nn.BatchNorm2d(x[1]), nn.Conv2d(x[1], d.width(), 1)
    )


@_image
def transposed(d: Draw, x: Shape) -> nn.Module:
    groups = d.divisor(x[1]) if d.chance(0.3) else 1
    k, step, pad = d.of((3, 1, 1), (2, 2, 0)) if x[2] < 8 else (3, 1, 1)
    return nn.ConvTranspose2d(x[1], groups * d.of(2, 3, 4), k, step, pad, groups=groups)


@_image
def functional_conv(d: Draw, x: Shape) -> nn.Module:
    out = d.width()
    return built(
        lambda m, x: F.conv2d(x, m.weight, m.bias),
        weight=nn.Parameter(torch.randn(out, x[1], 1, 1)),
        bias=nn.Parameter(torch.randn(out)),
    )


@_image
def einsum_conv(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.mix), mix=nn.Parameter(torch.randn(d.width(), x[1])))


@_image
def linear_on_pixels(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: m.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), mix=nn.Linear(x[1], d.width()))


@_image
def matmul_on_pixels(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return (m.mix @ x.reshape(b, c, h * w)).view(b, -1, h, w)

    return built(forward, mix=nn.Parameter(torch.randn(d.width(), x[1])))


@_image
def normalised(d: Draw, x: Shape) -> nn.Module:
    return norm(d, x[1])


@_image
def activated(d: Draw, x: Shape) -> nn.Module:
    return d.of(activation(d), nn.PReLU(x[1]), nn.Dropout2d(0.1), nn.Softplus())


@_image
def in_place(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.Conv2d(x[1], d.width(), 1), nn.ReLU(inplace=True))


@_image
def layer_norm_last(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(x[1]))


@_image
def layer_norm_first(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        return m.weight[:, None, None] * (x - u) / torch.sqrt(s + 1e-6) + m.bias[:, None, None]

    return built(forward, weight=nn.Parameter(torch.ones(x[1])), bias=nn.Parameter(torch.zeros(x[1])))


@_image
def grn(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        g = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + m.gain * (x * (g / (g.mean(1, keepdim=True) + 1e-6)))

    return built(forward, gain=nn.Parameter(torch.randn(1, x[1], 1, 1)))


@_image
def padded(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)))


@_image
def reflected(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(x[1], d.width(), 3))


@_image
def shifted(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: torch.roll(x, (1, -1), (2, 3)) + x.flip(3))


@_image
def stacked(d: Draw, x: Shape) -> nn.Module:
    n, dim = d.width(), d.of(0, 1, 2)
    return built(
        lambda m, x: torch.stack([m.a(x), m.b(x)], dim).sum(dim),
        a=nn.Conv2d(x[1], n, 1),
        b=nn.Conv2d(x[1], n, 3, padding=1),
    )


@_image
def selective(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        both = torch.stack([m.a(x), m.b(x)], 1)
        scores = m.gate(both.sum(1).mean((2, 3))).view(x.shape[0], 2, -1, 1, 1)
        return (both * scores.softmax(1)).sum(1)

    return built(forward, a=nn.Conv2d(x[1], n, 1), b=nn.Conv2d(x[1], n, 3, padding=1), gate=nn.Linear(n, 2 * n))


@_image
def repeated(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        built(lambda m, x: x.repeat(1, 2, 1, 1)),
        built(lambda m, x: x.repeat_interleave(2, 1)),
        built(lambda m, x: torch.cat([x, -x], 1)),
    )


@_image
def softmax_of_places(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * x.flatten(2).softmax(2).view_as(x) * 16)


@_image
def literal_view(d: Draw, x: Shape) -> nn.Module:
    n, side = d.width(), x[2]
    return built(
        lambda m, x: m.leave(m.enter(x).view(len(x), n, side * side).relu().view(-1, n, side, side)),
        enter=nn.Conv2d(x[1], n, 1),
        leave=nn.Conv2d(n, d.width(), 1),
    )


@_image
def attribute_view(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: m.leave(m.enter(x).reshape(len(x), m.channels, -1).tanh()).view(len(x), m.out, *x.shape[2:]),
        enter=nn.Conv2d(x[1], n, 1),
        leave=nn.Conv1d(n, n, 1),
        channels=n,
        out=n,
    )


@_image
def looped(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.5 * torch.tanh(m.step(x))
        return x

    return built(forward, step=nn.Conv2d(x[1], x[1], 3, padding=1))


@_image
def two_norms(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: m.norms[0](m.conv(x)) + m.norms[1](m.conv(F.avg_pool2d(x, 3, 1, 1))),
        conv=nn.Conv2d(x[1], n, 3, padding=1),
        norms=nn.ModuleList(nn.BatchNorm2d(n) for _ in range(2)),
    )


@_image
def sums_by_mask(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: torch.where(m.a(x) > 0, m.a(x), m.slope.view(1, -1, 1, 1) * m.b(x)),
        a=nn.Conv2d(x[1], n, 1),
        b=nn.Conv2d(x[1], n, 1),
        slope=nn.Parameter(torch.rand(n)),
    )
