"""Pieces of several layers from images to images: residual streams, branches, splits, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.images import block
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_image = piece(Kind.IMAGE)


@_image
def layer_scale(d: Draw, x: Shape) -> nn.Module:
    c = x[1]
    return built(
        lambda m, x: x + m.gain.view(1, -1, 1, 1) * m.conv(x),
        conv=nn.Conv2d(c, c, 1),
        gain=nn.Parameter(torch.randn(c)),
    )


@_image
def residual(d: Draw, x: Shape) -> nn.Module:
    c, inner = x[1], d.width()
    return built(
        lambda m, x: F.relu(x + m.second(F.relu(m.first(x)))),
        first=nn.Sequential(nn.Conv2d(c, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)),
        second=nn.Sequential(nn.Conv2d(inner, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)),
    )


@_image
def residual_projected(d: Draw, x: Shape) -> nn.Module:
    out, inner = d.width(), d.width()
    main = nn.Sequential(block(d, x[1], inner), nn.Conv2d(inner, out, 1), nn.BatchNorm2d(out))
    return built(lambda m, x: m.main(x) + m.short(x), main=main, short=nn.Conv2d(x[1], out, 1))


@_image
def inverted(d: Draw, x: Shape) -> nn.Module:
    c, inner = x[1], 2 * x[1]
    return built(
        lambda m, x: x + m.project(m.gate(m.deep(m.expand(x)))),
        expand=block(d, c, inner),
        deep=nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
        gate=squeeze(d, (1, inner, *x[2:])),
        project=nn.Conv2d(inner, c, 1),
    )


@_image
def squeeze(d: Draw, x: Shape) -> nn.Module:
    c, inner = x[1], d.width()
    if d.chance():
        return built(
            lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))),
            down=nn.Conv2d(c, inner, 1),
            up=nn.Conv2d(inner, c, 1),
        )

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * m.fc(m.pool(x).view(b, c)).view(b, c, 1, 1).expand_as(x)

    fc = nn.Sequential(nn.Linear(c, inner), nn.ReLU(), nn.Linear(inner, c), nn.Sigmoid())
    return built(forward, pool=nn.AdaptiveAvgPool2d(1), fc=fc)


@_image
def places_gate(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * m.conv(pooled).sigmoid()

    return built(forward, conv=nn.Conv2d(2, 1, 3, padding=1))


@_image
def gate_of_one(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * torch.sigmoid(m.gate(x)), gate=nn.Conv2d(x[1], 1, 1))


@_image
def dense(d: Draw, x: Shape) -> nn.Module:
    grown = d.of(2, 4)
    layers = nn.ModuleList(nn.Conv2d(x[1] + i * grown, grown, 3, padding=1) for i in range(d.of(2, 3)))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        found = [x]
        for layer in m.layers:
            found.append(F.relu(layer(torch.cat(found, 1))))
        return torch.cat(found, 1)

    return built(forward, layers=layers)


@_image
def branches(d: Draw, x: Shape) -> nn.Module:
    ways = nn.ModuleDict({name: block(d, x[1], d.of(2, 4, 6)) for name in ("narrow", "wide", "pool")})
    return built(lambda m, x: torch.cat([way(x) for way in m.ways.values()], dim=1), ways=ways)


@_image
def halves_of_one(d: Draw, x: Shape) -> nn.Module:
    n = d.of(2, 4)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = list(m.enter(x).chunk(2, 1))
        y.extend(layer(y[-1]) for layer in m.layers)
        return m.leave(torch.cat(y, 1))

    layers = nn.ModuleList(block(d, n, n) for _ in range(2))
    return built(forward, enter=nn.Conv2d(x[1], 2 * n, 1), layers=layers, leave=nn.Conv2d(4 * n, d.width(), 1))


@_image
def glu(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    enter = nn.Conv2d(x[1], 2 * n, 1)
    if d.chance():
        return nn.Sequential(enter, nn.GLU(1))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.enter(x).split(m.n, dim=1)
        return a * b.sigmoid()

    return built(forward, enter=enter, n=n)


@_image
def simple_gate(d: Draw, x: Shape) -> nn.Module | None:
    return built(lambda m, x: torch.mul(*x.chunk(2, dim=1))) if x[1] % 2 == 0 and x[1] > 4 else None


@_image
def maxout(d: Draw, x: Shape) -> nn.Module:
    n, k = d.of(3, 4, 5), d.of(2, 3)
    return built(lambda m, x: m.enter(x).unflatten(1, (-1, k)).amax(2), enter=nn.Conv2d(x[1], n * k, 1))


@_image
def uneven_split(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] < 4:
        return None
    sizes = [x[1] // 4, x[1] - x[1] // 4]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = torch.split(x, m.sizes, dim=1)
        return torch.cat([m.conv(a), b], dim=1)

    return built(forward, sizes=sizes, conv=nn.Conv2d(sizes[0], sizes[0], 3, padding=1))


@_image
def partial_conv(d: Draw, x: Shape) -> nn.Module | None:
    n = x[1] // 2
    if not n:
        return None
    return built(lambda m, x: torch.cat([m.conv(x[:, :n]), x[:, n:]], 1), conv=nn.Conv2d(n, n, 3, padding=1))


@_image
def slices_half(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] < 4 or x[1] % 2:
        return None
    return built(lambda m, x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :])


@_image
def shuffled(d: Draw, x: Shape) -> nn.Module | None:
    groups = d.divisor(x[1])
    if groups == 1:
        return None

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        return x.view(b, m.groups, c // m.groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return built(forward, groups=groups) if d.chance() else nn.ChannelShuffle(groups)


@_image
def pixel_shuffle(d: Draw, x: Shape) -> nn.Module | None:
    return nn.Sequential(nn.Conv2d(x[1], 4 * d.of(3, 4, 6), 1), nn.PixelShuffle(2)) if x[2] < 8 else None


@_image
def pixel_unshuffle(d: Draw, x: Shape) -> nn.Module | None:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * x[1], d.width(), 1)) if x[2] % 2 == 0 else None


@_image
def focus(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] % 2:
        return None
    return built(
        lambda m, x: m.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)),
        conv=nn.Conv2d(4 * x[1], d.width(), 1),
    )


@_image
def pooled(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] < 4:
        return None
    return d.of(
        nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2), nn.LPPool2d(2, 2)
    )


@_image
def pyramid(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        size = x.shape[2:]
        low = [
            F.interpolate(conv(F.adaptive_avg_pool2d(x, n)), size=size, mode="bilinear")
            for n, conv in zip((1, 2), m.convs, strict=True)
        ]
        return torch.cat([x, *low], 1)

    return built(forward, convs=nn.ModuleList(nn.Conv2d(x[1], d.of(2, 3), 1) for _ in range(2)))


@_image
def upsampled(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] > 4:
        return None
    return d.of(
        nn.Upsample(scale_factor=2),
        built(lambda m, x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear")),
    )


@_image
def hourglass(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] % 2 or x[2] < 4:
        return None
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        low = m.down(F.max_pool2d(x, 2))
        return m.merge(torch.cat([x, m.up(low)], 1))

    up = nn.ConvTranspose2d(n, n, 2, 2)
    return built(forward, down=block(d, x[1], n), up=up, merge=block(d, x[1] + n, d.width()))


@_image
def image_attention(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 4:
        return None
    h = d.of(2, 4)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        q, k, v = m.qkv(m.norm(x)).reshape(b * m.num_heads, -1, height * width).chunk(3, 1)
        weights = torch.softmax(q.transpose(1, 2) @ k / (q.shape[1] ** 0.5), -1)
        return x + m.out((v @ weights.transpose(1, 2)).reshape(b, -1, height, width))

    return built(
        forward, num_heads=h, norm=nn.GroupNorm(4, x[1]), qkv=nn.Conv2d(x[1], 3 * x[1], 1), out=nn.Conv2d(x[1], x[1], 1)
    )


@_image
def non_local(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, _, h, w = x.size()
        theta, phi, g = m.theta(x).view(b, m.n, -1), m.phi(x).view(b, m.n, -1), m.g(x).view(b, m.n, -1)
        weights = torch.bmm(theta.permute(0, 2, 1), phi).softmax(-1)
        y = torch.bmm(g, weights.permute(0, 2, 1)).view(b, m.n, h, w)
        return x + m.gain * m.out(y)

    return built(
        forward,
        n=n,
        gain=nn.Parameter(torch.ones(1)),
        theta=nn.Conv2d(x[1], n, 1),
        phi=nn.Conv2d(x[1], n, 1),
        g=nn.Conv2d(x[1], n, 1),
        out=nn.Conv2d(n, x[1], 1),
    )
