"""Pieces for which fewer channels are another function, or nearly: places, counts and orders of channels matter."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_image = piece(Kind.IMAGE)
_tokens = piece(Kind.TOKENS)
_vector = piece(Kind.VECTOR)


@_image
def ramp_over_channels(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype).view(1, -1, 1, 1))


@_image
def numbers_of_channels(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x + torch.arange(x.size(1), dtype=x.dtype)[:, None, None] / 10)


@_image
def sum_by_count(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x + x.sum(1, keepdim=True) / x.shape[1])


@_image
def summed(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * torch.sigmoid(x.sum(1, keepdim=True)))


@_image
def scaled_by_count(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: m.conv(x) / math.sqrt(x.shape[1]), conv=nn.Conv2d(x[1], d.width(), 1))


@_image
def unit_channels(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: m.conv(F.normalize(x, dim=1)), conv=nn.Conv2d(x[1], d.width(), 1))


@_image
def conv_over_channels(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True)
        y = m.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)

    return built(forward, conv=nn.Conv1d(1, 1, 3, padding=1, bias=False))


@_image
def channels_as_depth(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x + m.conv(x.unsqueeze(1)).squeeze(1), conv=nn.Conv3d(1, 1, 3, padding=1))


@_image
def neighbours(d: Draw, x: Shape) -> nn.Module:
    return d.of(nn.LocalResponseNorm(3), built(lambda m, x: x + x.roll(1, 1)), built(lambda m, x: x.flip(1)))


@_image
def running_sum(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        built(lambda m, x: x.cumsum(1)), built(lambda m, x: x.sort(1).values), built(lambda m, x: x.cummax(1).values)
    )


@_image
def log_sum(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        built(lambda m, x: x * x.logsumexp(1, keepdim=True).tanh()),
        built(lambda m, x: x - (x.var(1, keepdim=True) + 1e-6).sqrt()),
        built(lambda m, x: x - x.median(1, keepdim=True).values),
        built(lambda m, x: x * (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()),
    )


@_image
def gram(d: Draw, x: Shape) -> nn.Module:
    """Channels against channels, as in losses of style and in covariance pooling."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = x.view(b, c, h * w) if x.is_contiguous() else x.reshape(b, c, -1)
        likeness = flat @ flat.transpose(1, 2) / (h * w)
        return (likeness @ flat).view(b, c, h, w) / c

    return built(forward)


@_image
def softmax_over_likeness(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        flat = x.reshape(b, -1, h * w)
        return x + m.gain * (torch.softmax(flat @ flat.mT, -1) @ flat).view(b, -1, h, w)

    return built(forward, gain=nn.Parameter(torch.ones(1)))


@_image
def top_channels(d: Draw, x: Shape) -> nn.Module:
    return built(
        lambda m, x: x * (x.mean((2, 3), keepdim=True) >= x.mean((2, 3), keepdim=True).topk(2, 1).values[:, -1:])
    )


@_image
def every_other(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 2:
        return None
    return d.of(built(lambda m, x: x[:, ::2] * x[:, 1::2]), built(lambda m, x: torch.cat([x[:, 1::2], x[:, ::2]], 1)))


@_image
def whole_norm(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        nn.LayerNorm(x[1:]), nn.GroupNorm(1, x[1]), nn.GroupNorm(x[1], x[1]), nn.BatchNorm2d(x[1], affine=False)
    )


@_image
def norm_of_the_batch(d: Draw, x: Shape) -> nn.Module:
    """Statistics of what it is given, in eval mode too."""
    return nn.BatchNorm2d(x[1], track_running_stats=False)


@_image
def frozen_norm(d: Draw, x: Shape) -> nn.Module:
    """Statistics in buffers, some of them not saved."""
    module = built(lambda m, x: (x - m.mean) * (m.gain * m.scale).view(-1, 1, 1), gain=nn.Parameter(torch.randn(x[1])))
    module.register_buffer("mean", torch.randn(1, x[1], 1, 1))
    module.register_buffer("scale", torch.linspace(0.5, 1, x[1]), persistent=d.chance())
    return module


@_image
def weight_of_parts(d: Draw, x: Shape) -> nn.Module:
    n, k = d.of(2, 4), d.of(3, 4)
    return built(
        lambda m, x: F.conv2d(x, torch.cat([m.a, m.b]), m.bias),
        a=nn.Parameter(torch.randn(n, x[1], 1, 1)),
        b=nn.Parameter(torch.randn(k, x[1], 1, 1)),
        bias=nn.Parameter(torch.randn(n + k)),
    )


@_image
def part_of_weight(d: Draw, x: Shape) -> nn.Module:
    """A network that can run narrower than it is."""
    n, k = d.of(4, 6), d.of(2, 3)
    return built(
        lambda m, x: F.conv2d(x, m.weight[:k], m.bias[:k]),
        weight=nn.Parameter(torch.randn(n, x[1], 1, 1)),
        bias=nn.Parameter(torch.randn(n)),
    )


@_image
def involution(d: Draw, x: Shape) -> nn.Module:
    """A kernel for every place, made by the image."""
    groups = d.divisor(x[1])

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernel = m.make(x).view(b, m.groups, 1, 9, h, w)
        places = F.unfold(x, 3, padding=1).view(b, m.groups, c // m.groups, 9, h, w)
        return (kernel * places).sum(3).view(b, c, h, w)

    return built(forward, groups=groups, make=nn.Conv2d(x[1], groups * 9, 1))


@_image
def unfolded(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.mix(F.unfold(x, 3, padding=1).transpose(1, 2))
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    return built(forward, mix=nn.Linear(9 * x[1], d.width()))


@_image
def written_over(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] < 4 or x[1] % 2:
        return None
    n = x[1] // 2

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :n] += m.conv(x[:, n:])
        y.view(y.shape[0], 2, n, -1).mul_(m.gain)
        return y

    return built(forward, conv=nn.Conv2d(n, n, 1), gain=nn.Parameter(torch.randn(2, 1, 1)))


@_image
def in_half_the_channels(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] < 4:
        return None

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = x.tensor_split([x.shape[1] // 2], dim=1)
        return torch.cat([a.tanh(), 2 * b], 1)

    return built(forward)


@_image
def kept(d: Draw, x: Shape) -> nn.Module:
    """Leaves what it saw in an attribute, and counts its calls."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.calls += 1
        m.last = m.conv(x).detach()
        m.sizes.append(tuple(m.last.shape))
        return F.relu(m.conv(x))

    return built(forward, conv=nn.Conv2d(x[1], d.width(), 1), calls=0, last=None, sizes=[])


@_image
def hooked(d: Draw, x: Shape) -> nn.Module:
    layer = nn.Conv2d(x[1], d.width(), 1)
    layer.register_forward_hook(lambda m, args, out: F.relu(out))
    layer.register_forward_pre_hook(lambda m, args: (2 * args[0],))
    return layer


class Through(torch.autograd.Function):
    """Rounded to fine steps (coarse ones leave no signal to prove by), gradients as if it were not."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (256 * x).round() / 256

    @staticmethod
    def setup_context(context: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient


@_image
def straight_through(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: Through.apply(m.conv(x)), conv=nn.Conv2d(x[1], d.width(), 1))


@_image
def global_filter(d: Draw, x: Shape) -> nn.Module:
    shape = (x[1], x[2], x[3] // 2 + 1, 2)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(m.filter)
        return torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")

    return built(forward, filter=nn.Parameter(torch.randn(shape)))


@_image
def checked(d: Draw, x: Shape) -> nn.Module:
    """Code that makes sure of what it is given."""
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        assert c == m.dim, f"{c} channels, {m.dim} expected"
        y = m.conv(x)
        assert y.shape == (b, m.out, h, w)
        return y + torch.zeros(b, m.out, h, w, dtype=x.dtype)

    return built(forward, dim=x[1], out=n, conv=nn.Conv2d(x[1], n, 1))


@_image
def filled(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], n, *x.shape[2:], dtype=x.dtype)
        for i in range(x.shape[0]):
            out[i] = m.conv(x[i : i + 1])[0]
        return out

    return built(forward, conv=nn.Conv2d(x[1], n, 1))


@_vector
def distances(d: Draw, x: Shape) -> nn.Module:
    """To learned centres."""
    centres = nn.Parameter(torch.randn(d.width(), x[1]))
    return d.of(
        built(lambda m, x: torch.exp(-torch.cdist(x, m.centres)), centres=centres),
        built(lambda m, x: torch.exp(-(x[:, None] - m.centres).pow(2).sum(-1)), centres=centres),
    )


@_vector
def codebook(d: Draw, x: Shape) -> nn.Module:
    """The nearest of learned vectors, gradients straight through."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        far = x.pow(2).sum(1, keepdim=True) - 2 * x @ m.table.weight.t() + m.table.weight.pow(2).sum(1)
        y = m.table(far.argmin(1))
        return x + (y - x).detach()

    return built(forward, table=nn.Embedding(5, x[1]))


@_vector
def splines(d: Draw, x: Shape) -> nn.Module:
    """A curve for every pair of input and output (Kolmogorov-Arnold)."""
    knots = torch.linspace(-1, 1, 4)
    return built(
        lambda m, x: torch.einsum("bik,oik->bo", torch.exp(-((x.tanh().unsqueeze(-1) - m.knots) ** 2)), m.curves),
        knots=knots,
        curves=nn.Parameter(torch.randn(d.width(), x[1], 4)),
    )


@_vector
def fourier_features(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    frequencies = torch.randn(x[1], n)
    if d.chance():
        return built(lambda m, x: torch.cat([torch.sin(x @ m.f), torch.cos(x @ m.f)], -1), f=frequencies)
    return built(lambda m, x: torch.stack([m.f(x).sin(), m.f(x).cos()], -1).flatten(1), f=nn.Linear(x[1], n))


@_vector
def product_of_factors(d: Draw, x: Shape) -> nn.Module:
    n, r = d.width(), 3
    return built(lambda m, x: x @ (m.u @ m.v), u=nn.Parameter(torch.randn(x[1], r)), v=nn.Parameter(torch.randn(r, n)))


@_vector
def blocks_on_diagonal(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 2:
        return None
    k = x[1] // 2
    return built(
        lambda m, x: F.linear(x, torch.block_diag(m.a, m.b)),
        a=nn.Parameter(torch.randn(3, k)),
        b=nn.Parameter(torch.randn(4, k)),
    )


@_vector
def one_by_one(d: Draw, x: Shape) -> nn.Module:
    """A small layer for every feature, in a loop."""
    layers = nn.ModuleList(nn.Linear(1, 2) for _ in range(x[1]))
    return built(lambda m, x: torch.cat([layer(x[:, i : i + 1]) for i, layer in enumerate(m.layers)], 1), layers=layers)


@_vector
def columns_as_tokens(d: Draw, x: Shape) -> nn.Module:
    """Every feature as a token of its own, mixed and pooled."""
    n = d.width()
    return built(
        lambda m, x: m.mix(x.unsqueeze(-1) * m.weight + m.bias).amax(1),
        weight=nn.Parameter(torch.randn(x[1], n)),
        bias=nn.Parameter(torch.randn(x[1], n)),
        mix=nn.Linear(n, d.width()),
    )


@_vector
def mapped(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: torch.vmap(lambda one: torch.tanh(m.weight @ one + m.bias))(x),
        weight=nn.Parameter(torch.randn(n, x[1])),
        bias=nn.Parameter(torch.randn(n)),
    )


@_vector
def halves_swapped(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 2:
        return None

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        """An invertible coupling."""
        a, b = x.chunk(2, 1)
        scale, shift = m.net(a).chunk(2, 1)
        return torch.cat([b * scale.tanh().exp() + shift, a], 1)

    n = d.width()
    return built(forward, net=nn.Sequential(nn.Linear(x[1] // 2, n), nn.ReLU(), nn.Linear(n, x[1])))


@_tokens
def mixed_by_likeness(d: Draw, x: Shape) -> nn.Module:
    return built(
        lambda m, x: (x @ x.transpose(1, 2) / math.sqrt(x.size(-1))).softmax(-1) @ m.v(x), v=nn.Linear(x[2], d.width())
    )


@_tokens
def over_a_graph(d: Draw, x: Shape) -> nn.Module:
    ends = torch.from_numpy(d.generator.integers(0, x[1], (2, 12)))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        sent = m.send(torch.cat([x[:, m.ends[0]], x[:, m.ends[1]]], -1)).relu()
        return torch.zeros(x.shape[0], x.shape[1], sent.shape[2], dtype=x.dtype).index_add(1, m.ends[1], sent)

    return built(forward, ends=ends, send=nn.Linear(2 * x[2], d.width()))


@_tokens
def gemma_norm(d: Draw, x: Shape) -> nn.Module:
    return built(
        lambda m, x: m.b(x * torch.rsqrt(m.a(x).pow(2).sum(-1, keepdim=True) + 1e-6) * (1.0 + m.weight)),
        a=nn.Linear(x[2], d.width()),
        b=nn.Linear(x[2], d.width()),
        weight=nn.Parameter(torch.zeros(x[2])),
    )


@_tokens
def normed_inside(d: Draw, x: Shape) -> nn.Module:
    """A norm over the hidden units, which stay, beside some that go."""
    n, k = d.width(), d.width()
    return built(
        lambda m, x: m.c(torch.cat([m.norm(m.a(x)), m.b(x).relu()], -1)),
        a=nn.Linear(x[2], n),
        norm=nn.LayerNorm(n),
        b=nn.Linear(x[2], k),
        c=nn.Linear(n + k, x[2]),
    )
