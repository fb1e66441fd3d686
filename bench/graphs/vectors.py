"""Pieces on vectors [b, c], from one kind to another, and at both ends of a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.images import activation
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_vector = piece(Kind.VECTOR)


@_vector
def layer(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[1], d.width(), bias=d.chance())


@_vector
def layer_norm_act(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return nn.Sequential(
        nn.Linear(x[1], n), d.of(nn.BatchNorm1d(n), nn.LayerNorm(n), nn.GroupNorm(2, n)), activation(d)
    )


@_vector
def residual_vector(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Linear(x[1], n), b=nn.Linear(n, x[1]))


@_vector
def highway(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        t = torch.sigmoid(m.gate(x))
        return t * m.layer(x).relu() + (1 - t) * x

    return built(forward, gate=nn.Linear(x[1], x[1]), layer=nn.Linear(x[1], x[1]))


@_vector
def crossed(d: Draw, x: Shape) -> nn.Module:
    """Products with the first layer's input, again and again."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x
        for layer in m.layers:
            y = x * layer(y) + y
        return y

    return built(forward, layers=nn.ModuleList(nn.Linear(x[1], x[1]) for _ in range(2)))


@_vector
def heads_by_name(d: Draw, x: Shape) -> nn.Module:
    heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(x[1], d.width()), nn.ReLU()) for name in "abc"})
    order = d.of("abc", "cab", "bb")
    return built(lambda m, x: torch.cat([m.heads[name](x) for name in order], 1), heads=heads)


@_vector
def capsules(d: Draw, x: Shape) -> nn.Module:
    n, k = d.of(3, 4), d.of(2, 4)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.enter(x).view(x.size(0), n, k)
        return m.leave((y * y.norm(dim=2, keepdim=True).tanh()).view(x.size(0), -1))

    return built(forward, enter=nn.Linear(x[1], n * k), leave=nn.Linear(n * k, d.width()))


@_vector
def soft_choice(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: (m.gate(x).softmax(1).unsqueeze(2) * torch.stack([f(x) for f in m.ways], 1)).sum(1),
        gate=nn.Linear(x[1], 3),
        ways=nn.ModuleList(nn.Linear(x[1], n) for _ in range(3)),
    )


@_vector
def indexed(d: Draw, x: Shape) -> nn.Module:
    order = torch.from_numpy(d.generator.permutation(x[1]))
    return built(
        lambda m, x: x[:, m.order] if m.by_index else x.index_select(1, m.order), order=order, by_index=d.chance()
    )


@_vector
def picked(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * torch.sigmoid(x[:, :1]) + x[:, -1:].tanh())


@_vector
def variational(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        mean, log_variance = torch.chunk(m.enter(x), 2, dim=-1)
        if m.training:
            mean = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return m.leave(mean)

    return built(forward, enter=nn.Linear(x[1], 2 * n), leave=nn.Linear(n, x[1]))


@_vector
def experts_that_run(d: Draw, x: Shape) -> nn.Module:
    """Code that goes by what it is given."""
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        if x.shape[-1] != m.a.in_features:
            raise ValueError(f"{x.shape[-1]} features were given, {m.a.in_features} expected")
        y = m.a(x)
        assert y.dim() == 2
        return m.b(y.relu()) if y.requires_grad or len(y) else y

    return built(forward, a=nn.Linear(x[1], n), b=nn.Linear(n, d.width()))


# --- where a model begins ---


@piece(Kind.PIXELS, to=Kind.IMAGE)
def image_stem(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return d.of(
        nn.Conv2d(x[1], n, 3, padding=1), nn.Sequential(nn.Conv2d(x[1], n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU())
    )


@piece(Kind.CLIP, to=Kind.VOLUME)
def clip_stem(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv3d(x[1], d.width(), 1)


@piece(Kind.SOUND, to=Kind.WAVE)
def sound_stem(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv1d(x[1], d.width(), 4, 2, 1)


@piece(Kind.WORDS, to=Kind.TOKENS)
def word_stem(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    table = nn.Embedding(30, n, padding_idx=d.of(None, 0))
    if d.chance():
        return table
    return built(
        lambda m, x: m.table(x) * n**0.5 + m.places(torch.arange(x.shape[1])), table=table, places=nn.Embedding(x[1], n)
    )


@piece(Kind.FRAMES, to=Kind.TOKENS)
def frame_stem(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[2], d.width())


@piece(Kind.FACTS, to=Kind.VECTOR)
def fact_stem(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[1], d.width())


# --- from one kind to another ---


@piece(Kind.IMAGE, to=Kind.TOKENS)
def tokens_of_image(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x.flatten(2).transpose(1, 2))


@piece(Kind.IMAGE, to=Kind.TOKENS)
def patches(d: Draw, x: Shape) -> nn.Module:
    k = 2 if x[2] % 2 == 0 else 1
    conv = nn.Conv2d(x[1], d.width(), k, k)
    return built(
        lambda m, x: m.norm(m.conv(x).flatten(2).permute(0, 2, 1)), conv=conv, norm=nn.LayerNorm(conv.out_channels)
    )


@piece(Kind.TOKENS, to=Kind.IMAGE)
def image_of_tokens(d: Draw, x: Shape) -> nn.Module | None:
    side = round(x[1] ** 0.5)
    return built(lambda m, x: x.transpose(1, 2).reshape(x.shape[0], -1, side, side)) if side**2 == x[1] else None


@piece(Kind.IMAGE, to=Kind.WAVE)
def wave_of_image(d: Draw, x: Shape) -> nn.Module:
    return d.of(built(lambda m, x: x.flatten(2)), built(lambda m, x: x.mean(3)), built(lambda m, x: x.amax(2)))


@piece(Kind.VOLUME, to=Kind.IMAGE)
def image_of_volume(d: Draw, x: Shape) -> nn.Module:
    return d.of(built(lambda m, x: x.mean(2)), built(lambda m, x: x[:, :, 0]), built(lambda m, x: x.flatten(1, 2)))


@piece(Kind.IMAGE, to=Kind.VOLUME)
def volume_of_image(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: torch.stack([x, x.flip(2)], 2))


@piece(Kind.IMAGE, to=Kind.VECTOR)
def image_mean(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        built(lambda m, x: x.mean((2, 3))),
        built(lambda m, x: F.adaptive_max_pool2d(x, 1).flatten(1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        built(lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1)),
        built(lambda m, x: F.avg_pool2d(x, x.size()[2:]).squeeze(-1).squeeze(-1)),
    )


@piece(Kind.IMAGE, to=Kind.VECTOR)
def image_flattened(d: Draw, x: Shape) -> nn.Module | None:
    if (size := x[1] * x[2] * x[3]) > 1024:
        return None
    flat = d.of(
        nn.Flatten(),
        built(lambda m, x: x.contiguous().view(-1, m.size), size=size),
        built(lambda m, x: x.permute(0, 2, 3, 1).reshape(len(x), -1)),
    )
    return nn.Sequential(flat, nn.Linear(size, d.width()))


@piece(Kind.TOKENS, to=Kind.VECTOR)
def token_mean(d: Draw, x: Shape) -> nn.Module:
    return d.of(
        built(lambda m, x: x.mean(1)),
        built(lambda m, x: x[:, 0]),
        built(lambda m, x: x[:, -1]),
        built(lambda m, x: x.amax(dim=1)),
        built(lambda m, x: x.select(1, 1)),
    )


@piece(Kind.TOKENS, to=Kind.VECTOR)
def attentive_pool(d: Draw, x: Shape) -> nn.Module:
    return built(
        lambda m, x: torch.einsum("bn,bnc->bc", m.score(x).squeeze(-1).softmax(1), x), score=nn.Linear(x[2], 1)
    )


@piece(Kind.TOKENS, to=Kind.VECTOR)
def tokens_flattened(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(x[1] * x[2], d.width()))


@piece(Kind.VECTOR, to=Kind.TOKENS)
def tokens_of_vector(d: Draw, x: Shape) -> nn.Module:
    n, c = 4, d.width()
    return d.of(
        built(lambda m, x: m.grow(x).view(-1, n, c), grow=nn.Linear(x[1], n * c)),
        built(lambda m, x: m.grow(x).unflatten(1, (n, -1)), grow=nn.Linear(x[1], n * c)),
        built(lambda m, x: x[:, None] * m.table, table=nn.Parameter(torch.randn(n, x[1]))),
        built(lambda m, x: x.unsqueeze(-1) @ m.row, row=nn.Parameter(torch.randn(1, c)))
        if x[1] <= 16
        else nn.Unflatten(1, (1, -1)),
    )


@piece(Kind.VECTOR, to=Kind.IMAGE)
def image_of_vector(d: Draw, x: Shape) -> nn.Module:
    c = d.width()
    return d.of(
        built(lambda m, x: m.grow(x).view(-1, c, 4, 4), grow=nn.Linear(x[1], 16 * c)),
        built(lambda m, x: m.grow(x[:, :, None, None]), grow=nn.ConvTranspose2d(x[1], c, 4)),
    )


# --- where a model ends ---


@piece(Kind.VECTOR, to=Kind.ANSWER)
def classes(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[1], 3)


@piece(Kind.IMAGE, to=Kind.ANSWER)
def picture(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv2d(x[1], 2, 1)


@piece(Kind.IMAGE, to=Kind.ANSWER)
def classes_of_image(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(x[1], 3))


@piece(Kind.VOLUME, to=Kind.ANSWER)
def classes_of_volume(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: m.out(x.mean((2, 3, 4))), out=nn.Linear(x[1], 3))


@piece(Kind.WAVE, to=Kind.ANSWER)
def samples(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv1d(x[1], 1, 1)


@piece(Kind.TOKENS, to=Kind.ANSWER)
def words(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(x[2]), nn.Linear(x[2], 5)) if d.chance() else nn.Linear(x[2], 5, bias=False)
