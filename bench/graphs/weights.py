"""Pieces whose weights are computed, tied or parametrized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_image = piece(Kind.IMAGE)
_tokens = piece(Kind.TOKENS)
_vector = piece(Kind.VECTOR)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Scaled(nn.Module):
    """A learned factor for every output."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(n, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


@_image
def weight_normed(d: Draw, x: Shape) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(x[1], d.width(), 3, padding=1), dim=d.of(0, 0, 1))


@_image
def standardised(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        w = m.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, padding=1)

    return built(forward, weight=nn.Parameter(torch.randn(d.width(), x[1], 3, 3)))


@_image
def masked_weight(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    mask = (torch.rand(n, x[1], 1, 1) > 0.3).float()
    return built(
        lambda m, x: F.conv2d(x, m.weight * m.mask, m.bias),
        weight=nn.Parameter(torch.randn(n, x[1], 1, 1)),
        mask=mask,
        bias=nn.Parameter(torch.randn(n)),
    )


@_image
def pruned_by_torch(d: Draw, x: Shape) -> nn.Module:
    layer = nn.Conv2d(x[1], d.width(), 3, padding=1)
    prune.random_unstructured(layer, "weight", amount=0.3)
    prune.remove(layer, "weight")
    return layer


@_image
def equalised(d: Draw, x: Shape) -> nn.Module:
    """The weight times a number of its fan-in."""
    return built(
        lambda m, x: F.conv2d(x, m.weight * m.scale, padding=1),
        weight=nn.Parameter(torch.randn(d.width(), x[1], 3, 3)),
        scale=(9 * x[1]) ** -0.5,
    )


@_image
def mixed_kernels(d: Draw, x: Shape) -> nn.Module:
    """Kernels mixed for every sample (dynamic convolution)."""
    n, k = d.width(), 3

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        shares = m.router(x.mean((2, 3))).softmax(-1)
        weight = torch.einsum("bk,kocij->bocij", shares, m.kernels)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight.flatten(0, 1), padding=1, groups=b)
        return y.view(b, -1, h, w)

    return built(forward, router=nn.Linear(x[1], k), kernels=nn.Parameter(0.3 * torch.randn(k, n, x[1], 3, 3)))


@_tokens
def adapted(d: Draw, x: Shape) -> nn.Module:
    """A low-rank addition to a frozen layer (LoRA)."""
    n, r = d.width(), 2
    base = nn.Linear(x[2], n)
    base.weight.requires_grad_(False)
    return built(
        lambda m, x: m.base(x) + 0.5 * m.b(m.a(x)),
        base=base,
        a=nn.Linear(x[2], r, bias=False),
        b=nn.Linear(r, n, bias=False),
    )


@_tokens
def merged_adapter(d: Draw, x: Shape) -> nn.Module:
    n, r = d.width(), 2
    return built(
        lambda m, x: F.linear(x, m.weight + m.b @ m.a),
        weight=nn.Parameter(torch.randn(n, x[2])),
        a=nn.Parameter(torch.randn(r, x[2])),
        b=nn.Parameter(torch.randn(n, r)),
    )


@_tokens
def scaled_layer(d: Draw, x: Shape) -> nn.Module:
    layer = nn.Linear(x[2], d.width())
    parametrize.register_parametrization(layer, "weight", d.of(Doubled(), Scaled(layer.out_features)))
    return layer


@_tokens
def symmetric(d: Draw, x: Shape) -> nn.Module:
    layer = nn.Linear(x[2], x[2])
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@_tokens
def spectral(d: Draw, x: Shape) -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(x[2], d.width()))


@_tokens
def quantised(d: Draw, x: Shape) -> nn.Module:
    """Weights rounded to steps of every output, gradients straight through."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        steps = m.weight.abs().amax(1, keepdim=True) / 7
        rounded = (m.weight / steps).round() * steps
        return F.linear(x, m.weight + (rounded - m.weight).detach())

    return built(forward, weight=nn.Parameter(torch.randn(d.width(), x[2])))


@_tokens
def softplus_weight(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: F.linear(x, F.softplus(m.weight)), weight=nn.Parameter(torch.randn(d.width(), x[2])))


@_tokens
def decoded_by_encoder(d: Draw, x: Shape) -> nn.Module:
    first, second = nn.Linear(x[2], d.width()), nn.Linear(x[2], x[2])
    return built(
        lambda m, x: m.first.weight.t().matmul(m.first(x).relu().transpose(1, 2)).transpose(1, 2) + m.second(x),
        first=first,
        second=second,
    )


@_tokens
def shared_in_list(d: Draw, x: Shape) -> nn.Module:
    """One layer twice in a list, between layers of its own."""
    c, n = x[2], d.width()
    shared = nn.Linear(n, n)
    layers = nn.ModuleList([nn.Linear(c, n), shared, nn.Linear(n, n), shared, nn.Linear(n, c)])

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = torch.tanh(layer(x))
        return x

    return built(forward, layers=layers)


@_vector
def stacked_weights(d: Draw, x: Shape) -> nn.Module:
    """Several members at once, each with weights of its own, averaged."""
    k, n = 3, d.width()
    return built(
        lambda m, x: torch.einsum("kbn,kno->kbo", torch.einsum("bc,kcn->kbn", x, m.first).relu(), m.second).mean(0),
        first=nn.Parameter(torch.randn(k, x[1], n)),
        second=nn.Parameter(torch.randn(k, n, x[1])),
    )


@_vector
def written_in_parts(d: Draw, x: Shape) -> nn.Module:
    n, k = d.width(), d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], n + k)
        out[:, :n] = m.a(x)
        out[:, n:] = m.b(x)
        return out

    return built(forward, a=nn.Linear(x[1], n), b=nn.Linear(x[1], k))


@_vector
def added_matrices(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: torch.addmm(m.bias, x, m.weight),
        bias=nn.Parameter(torch.randn(n)),
        weight=nn.Parameter(torch.randn(x[1], n)),
    )


@_vector
def made_by_other(d: Draw, x: Shape) -> nn.Module:
    """A weight for every sample, made by a layer (a hypernetwork)."""
    n, inner = d.of(2, 4), d.width()
    return built(
        lambda m, x: torch.bmm(m.make(x.tanh()).view(x.size(0), n, -1), m.enter(x).unsqueeze(2)).squeeze(2),
        enter=nn.Linear(x[1], inner),
        make=nn.Linear(x[1], n * inner),
    )
