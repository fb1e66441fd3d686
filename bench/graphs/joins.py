"""Pieces that read two tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_images = piece(Kind.IMAGE, Kind.IMAGE)
_vectors = piece(Kind.VECTOR, Kind.VECTOR)
_pair = piece(Kind.TOKENS, Kind.TOKENS)


def _joined(d: Draw, x: Shape, y: Shape, dim: int, layer: type[nn.Module]) -> nn.Module:
    """Added, multiplied, or the larger of both: projected first where the channels are not as many."""
    how = d.of(torch.add, torch.mul, torch.maximum, torch.sub, lambda a, b: a + b.sigmoid() * a)
    options = {} if layer is nn.Linear else {"kernel_size": 1}
    project = nn.Identity() if x[dim] == y[dim] and d.chance(0.7) else layer(y[dim], x[dim], **options)
    return built(lambda m, x, y: how(x, m.project(y)), project=project)


@_images
def joined(d: Draw, x: Shape, y: Shape) -> nn.Module:
    inner = _joined(d, x, y, 1, nn.Conv2d)
    if x[2:] == y[2:]:
        return inner
    return built(lambda m, x, y: m.inner(x, F.interpolate(y, size=x.shape[2:])), inner=inner)


@_images
def concatenated(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    return (
        built(lambda m, x, y: torch.cat([x, F.adaptive_avg_pool2d(y, x.shape[2:])], 1)) if x[1] + y[1] <= 32 else None
    )


@_images
def gated_by_other(d: Draw, x: Shape, y: Shape) -> nn.Module:
    return built(lambda m, x, y: x * m.gate(y.mean((2, 3), keepdim=True)).sigmoid(), gate=nn.Conv2d(y[1], x[1], 1))


@_images
def skip_gate(d: Draw, x: Shape, y: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        both = F.relu(m.a(x) + F.interpolate(m.b(y), size=x.shape[2:]))
        return x * m.psi(both).sigmoid()

    return built(forward, a=nn.Conv2d(x[1], n, 1), b=nn.Conv2d(y[1], n, 1), psi=nn.Conv2d(n, 1, 1))


@piece(Kind.IMAGE, Kind.VECTOR)
def modulated(d: Draw, x: Shape, y: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = m.from_other(y)[..., None, None].chunk(2, 1)
        return m.norm(x) * (1 + scale) + shift

    return built(forward, norm=nn.GroupNorm(d.divisor(x[1]), x[1]), from_other=nn.Linear(y[1], 2 * x[1]))


@piece(Kind.IMAGE, Kind.VECTOR)
def time_added(d: Draw, x: Shape, y: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x, y: m.second(F.silu(m.first(x) + m.time(y)[:, :, None, None])),
        first=nn.Conv2d(x[1], n, 1),
        time=nn.Linear(y[1], n),
        second=nn.Conv2d(n, d.width(), 1),
    )


@piece(Kind.IMAGE, Kind.VECTOR)
def tiled(d: Draw, x: Shape, y: Shape) -> nn.Module:
    return built(lambda m, x, y: torch.cat([x, y[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1))


@piece(Kind.IMAGE, Kind.VECTOR)
def modulated_weights(d: Draw, x: Shape, y: Shape) -> nn.Module:
    """A weight for every sample, run as groups of one convolution (StyleGAN 2)."""
    demodulates = d.chance()

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = m.weight * m.style(y).view(b, 1, c, 1, 1)
        if demodulates:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, -1, 1, 1, 1)
        out = F.conv2d(x.reshape(1, b * c, h, w), weight.view(-1, c, 3, 3), padding=1, groups=b)
        return out.view(b, -1, h, w)

    return built(forward, weight=nn.Parameter(torch.randn(1, d.width(), x[1], 3, 3)), style=nn.Linear(y[1], x[1]))


@_vectors
def joined_vectors(d: Draw, x: Shape, y: Shape) -> nn.Module:
    return _joined(d, x, y, 1, nn.Linear)


@_vectors
def concatenated_vectors(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    return built(lambda m, x, y: torch.cat((y, x), -1)) if x[1] + y[1] <= 48 else None


@_vectors
def bilinear(d: Draw, x: Shape, y: Shape) -> nn.Module:
    return nn.Bilinear(x[1], y[1], d.width())


@_vectors
def outer(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    if x[1] * y[1] > 64:
        return None
    return built(
        lambda m, x, y: m.mix((x[:, :, None] * y[:, None, :]).flatten(1)), mix=nn.Linear(x[1] * y[1], d.width())
    )


@_vectors
def low_rank_product(d: Draw, x: Shape, y: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x, y: m.o(m.a(x) * m.b(y)), a=nn.Linear(x[1], n), b=nn.Linear(y[1], n), o=nn.Linear(n, d.width())
    )


@_vectors
def similarity(d: Draw, x: Shape, y: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x, y: x * torch.einsum("bk,bk->b", m.a(x), m.b(y)).unsqueeze(1).tanh(),
        a=nn.Linear(x[1], n),
        b=nn.Linear(y[1], n),
    )


@_pair
def joined_tokens(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    return _joined(d, x, y, 2, nn.Linear) if x[1] == y[1] else None


@_pair
def longer(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    return built(lambda m, x, y: torch.cat([x, y], dim=1)) if x[2] == y[2] and x[1] + y[1] <= 24 else None


@_pair
def wider(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    return built(lambda m, x, y: torch.cat([y, x], dim=-1)) if x[1] == y[1] and x[2] + y[2] <= 32 else None


@_pair
def cross_attention(d: Draw, x: Shape, y: Shape) -> nn.Module:
    h, k = d.of((2, 4), (4, 4), (2, 2))

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        q = m.q(x).unflatten(-1, (m.h, -1)).transpose(1, 2)
        k, v = m.kv(y).unflatten(-1, (2, m.h, -1)).permute(2, 0, 3, 1, 4)
        return x + m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return built(forward, h=h, q=nn.Linear(x[2], h * k), kv=nn.Linear(y[2], 2 * h * k), o=nn.Linear(h * k, x[2]))


@_pair
def module_cross_attention(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    if x[2] % 2:
        return None
    layer = nn.MultiheadAttention(x[2], 2, batch_first=True, kdim=y[2], vdim=y[2])
    return built(lambda m, x, y: x + m.layer(x, y, y)[0], layer=layer)


@_pair
def decoder(d: Draw, x: Shape, y: Shape) -> nn.Module | None:
    if x[2] != y[2] or x[2] % 2:
        return None
    return nn.TransformerDecoderLayer(x[2], 2, d.width(), batch_first=True, norm_first=d.chance())


@_pair
def matched(d: Draw, x: Shape, y: Shape) -> nn.Module:
    """Every token by its likeness to the other's."""
    n = d.width()
    return built(
        lambda m, x, y: torch.cat([x, m.a(x) @ m.b(y).transpose(1, 2)], -1), a=nn.Linear(x[2], n), b=nn.Linear(y[2], n)
    )


@piece(Kind.TOKENS, Kind.VECTOR)
def adaptive_norm(d: Draw, x: Shape, y: Shape) -> nn.Module:
    c, n = x[2], d.width()

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = m.from_other(F.silu(y)).chunk(3, dim=1)
        z = m.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        return x + gate.unsqueeze(1) * m.mlp(z)

    mlp = nn.Sequential(nn.Linear(c, n), nn.GELU(), nn.Linear(n, c))
    return built(forward, norm=nn.LayerNorm(c, elementwise_affine=False), from_other=nn.Linear(y[1], 3 * c), mlp=mlp)


@piece(Kind.TOKENS, Kind.VECTOR)
def prefixed(d: Draw, x: Shape, y: Shape) -> nn.Module:
    return built(lambda m, x, y: torch.cat([m.token(y)[:, None], x], 1), token=nn.Linear(y[1], x[2]))


@piece(Kind.TOKENS, Kind.MASK)
def masked_out(d: Draw, x: Shape, mask: Shape) -> nn.Module | None:
    if x[1] != mask[1]:
        return None
    return built(
        lambda m, x, mask: x.masked_fill(~mask[..., None], 0.0) if m.fills else x * mask.unsqueeze(-1), fills=d.chance()
    )


@piece(Kind.TOKENS, Kind.MASK, to=Kind.VECTOR)
def masked_mean(d: Draw, x: Shape, mask: Shape) -> nn.Module | None:
    if x[1] != mask[1]:
        return None
    return built(lambda m, x, mask: (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
