"""Pieces on tokens [b, n, c] but for attention, recurrent layers and experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.graphs.images import activation
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_tokens = piece(Kind.TOKENS)


class RMS(nn.Module):
    """As large language models write it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def token_norm(d: Draw, c: int) -> nn.Module:
    return d.of(nn.LayerNorm, nn.RMSNorm, RMS)(c)


@_tokens
def linear(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[2], d.width(), bias=d.chance())


@_tokens
def token_normalised(d: Draw, x: Shape) -> nn.Module:
    return token_norm(d, x[2])


@_tokens
def mlp(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return nn.Sequential(nn.Linear(x[2], n), activation(d), nn.Dropout(0.1), nn.Linear(n, d.width()))


@_tokens
def mlp_block(d: Draw, x: Shape) -> nn.Module:
    c, n = x[2], d.width()
    return built(
        lambda m, x: x + m.down(m.act(m.up(m.norm(x)))),
        norm=token_norm(d, c),
        up=nn.Linear(c, n),
        act=activation(d),
        down=nn.Linear(n, c),
    )


@_tokens
def gated_mlp(d: Draw, x: Shape) -> nn.Module:
    c, n = x[2], d.width()
    return built(
        lambda m, x: x + m.down(F.silu(m.gate(m.norm(x))) * m.up(m.norm(x))),
        norm=token_norm(d, c),
        gate=nn.Linear(c, n, bias=False),
        up=nn.Linear(c, n, bias=False),
        down=nn.Linear(n, c, bias=False),
    )


@_tokens
def fused_gated_mlp(d: Draw, x: Shape) -> nn.Module:
    c, n = x[2], d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        both = m.enter(x)
        a, b = both.chunk(2, -1) if m.chunks else (both[..., : m.n], both[..., m.n :])
        return x + m.leave(F.gelu(a) * b)

    return built(forward, n=n, chunks=d.chance(), enter=nn.Linear(c, 2 * n), leave=nn.Linear(n, c))


@_tokens
def alternating_gate(d: Draw, x: Shape) -> nn.Module:
    """Gate and value in turn, as some open weights store them."""
    c, n = x[2], d.width()
    return built(
        lambda m, x: x + m.leave(m.enter(x)[..., ::2].sigmoid() * m.enter(x)[..., 1::2]),
        enter=nn.Linear(c, 2 * n),
        leave=nn.Linear(n, c),
    )


@_tokens
def functional_mlp(d: Draw, x: Shape) -> nn.Module:
    c, n = x[2], d.width()
    return built(
        lambda m, x: F.linear(F.relu(F.linear(x, m.up, m.bias)), m.down),
        up=nn.Parameter(torch.randn(n, c)),
        bias=nn.Parameter(torch.randn(n)),
        down=nn.Parameter(torch.randn(d.width(), n)),
    )


@_tokens
def matrices(d: Draw, x: Shape) -> nn.Module:
    n, out = d.width(), d.width()
    return built(
        lambda m, x: torch.tanh(x @ m.up + m.bias) @ m.down,
        up=nn.Parameter(torch.randn(x[2], n)),
        bias=nn.Parameter(torch.randn(n)),
        down=nn.Parameter(torch.randn(n, out)),
    )


@_tokens
def einsum_heads(d: Draw, x: Shape) -> nn.Module:
    h, k = d.of(2, 3), d.of(2, 4)
    return built(
        lambda m, x: torch.einsum("bnhd,hdc->bnc", torch.einsum("bnc,chd->bnhd", x, m.enter).relu(), m.leave),
        enter=nn.Parameter(torch.randn(x[2], h, k)),
        leave=nn.Parameter(torch.randn(h, k, x[2])),
    )


@_tokens
def tied_mlp(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: F.linear(F.relu(m.up(x)), m.up.weight.t()), up=nn.Linear(x[2], d.width()))


@_tokens
def over_places(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    mix = nn.Sequential(nn.Linear(x[1], n), activation(d), nn.Linear(n, x[1]))
    return built(lambda m, x: x + m.mix(x.transpose(1, 2)).transpose(1, 2), mix=mix)


@_tokens
def gated_places(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        u, v = F.gelu(m.enter(x)).chunk(2, dim=-1)
        v = m.places(m.norm(v).transpose(1, 2)).transpose(1, 2)
        return x + m.leave(u * v)

    return built(
        forward,
        enter=nn.Linear(x[2], 2 * n),
        norm=nn.LayerNorm(n),
        places=nn.Linear(x[1], x[1]),
        leave=nn.Linear(n, x[2]),
    )


@_tokens
def positions(d: Draw, x: Shape) -> nn.Module:
    table = nn.Parameter(torch.randn(x[1], x[2]))
    if d.chance():
        return built(lambda m, x: x + m.table[: x.shape[1]], table=table)
    return built(
        lambda m, x: x + m.table(m.numbers[: x.size(1)]), table=nn.Embedding(x[1], x[2]), numbers=torch.arange(x[1])
    )


@_tokens
def sine_positions(d: Draw, x: Shape) -> nn.Module:
    place = torch.arange(x[1], dtype=torch.float32)[:, None]
    return built(lambda m, x: x + m.table[:, : x.size(1)], table=torch.sin(place / (1 + torch.arange(x[2])))[None])


@_tokens
def class_token(d: Draw, x: Shape) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([m.token.expand(x.shape[0], -1, -1), x], dim=1)

    return built(forward, token=nn.Parameter(torch.randn(1, 1, x[2])))


@_tokens
def conv_on_tokens(d: Draw, x: Shape) -> nn.Module:
    n, wide = d.width(), d.chance()
    conv = nn.Conv1d(x[2], n if wide else x[2], 3, padding=1, groups=1 if wide else x[2])
    return built(lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=conv)


@_tokens
def conv_on_grid(d: Draw, x: Shape) -> nn.Module | None:
    side = int(x[1] ** 0.5)
    if side * side != x[1]:
        return None

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, _, c = x.shape
        image = x.transpose(1, 2).reshape(b, c, side, side)
        return x + m.conv(image).flatten(2).transpose(1, 2)

    return built(forward, conv=nn.Conv2d(x[2], x[2], 3, padding=1, groups=x[2]))


@_tokens
def merged_places(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 2:
        return None
    return built(
        lambda m, x: m.mix(m.norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1))),
        norm=nn.LayerNorm(2 * x[2]),
        mix=nn.Linear(2 * x[2], d.width()),
    )


@_tokens
def folded_places(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 2:
        return None
    return built(lambda m, x: m.mix(x.reshape(x.shape[0], x.shape[1] // 2, -1)), mix=nn.Linear(2 * x[2], d.width()))


@_tokens
def squeezed_tokens(d: Draw, x: Shape) -> nn.Module:
    return built(
        lambda m, x: x * m.up(F.relu(m.down(x.mean(1, keepdim=True)))).sigmoid(),
        down=nn.Linear(x[2], 4),
        up=nn.Linear(4, x[2]),
    )


@_tokens
def softmax_of_channels(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x * m.mix(x).softmax(-1), mix=nn.Linear(x[2], x[2]))


@_tokens
def unit_length(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: F.normalize(x, dim=1) + x)


@_tokens
def fourier(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: torch.fft.fft(x, dim=1).real / x.shape[1] ** 0.5)


@_tokens
def groups_of_channels(d: Draw, x: Shape) -> nn.Module:
    g, k, out = d.of(2, 4), d.of(2, 3), d.of(2, 3)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = m.enter(x).view(b, n, g, -1)
        return torch.einsum("bngk,gko->bngo", y, m.blocks).reshape(b, n, -1)

    return built(forward, enter=nn.Linear(x[2], g * k), blocks=nn.Parameter(torch.randn(g, k, out)))


@_tokens
def checkpointed(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    inner = nn.Sequential(nn.Linear(x[2], n), nn.ReLU(), nn.Linear(n, x[2]))
    return built(lambda m, x: x + checkpoint(m.inner, x, use_reentrant=False), inner=inner)


@_tokens
def called_by_function(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    inner = nn.Sequential(nn.Linear(x[2], n), nn.ReLU(), nn.Linear(n, x[2]))
    return built(lambda m, x: torch.func.functional_call(m.inner, dict(m.inner.named_parameters()), (x,)), inner=inner)


@_tokens
def layers_of_list(d: Draw, x: Shape) -> nn.Module:
    c, n = x[2], d.width()
    layers = nn.ModuleList(
        nn.Sequential(nn.LayerNorm(c), nn.Linear(c, n), nn.GELU(), nn.Linear(n, c)) for _ in range(2)
    )

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        kept = []
        for i, layer in enumerate(m.layers):
            x = x + layer(x)
            if i in m.taken:
                kept.append(x)
        return torch.stack(kept).sum(0) if len(kept) > 1 else kept[0]

    return built(forward, layers=layers, taken=d.of((1,), (0, 1)))


@_tokens
def dictionary(d: Draw, x: Shape) -> nn.Module:
    """Layers hand on a dictionary."""
    c, n = x[2], d.width()

    def first(m: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**state, "hidden": F.gelu(m.layer(state["x"]))}

    def second(m: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": state["x"] + m.layer(state["hidden"])}

    parts = nn.ModuleDict({"a": built(first, layer=nn.Linear(c, n)), "b": built(second, layer=nn.Linear(n, c))})
    return built(lambda m, x: m.parts["b"](m.parts["a"]({"x": x}))["x"], parts=parts)


@_tokens
def state_space(d: Draw, x: Shape) -> nn.Module:
    """A diagonal recurrence over places, step by step."""
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        u, gate = m.enter(x).chunk(2, -1)
        state, out = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            state = torch.sigmoid(m.decay) * state + u[:, t]
            out.append(state)
        return m.leave(torch.stack(out, 1) * F.silu(gate))

    return built(forward, enter=nn.Linear(x[2], 2 * n), decay=nn.Parameter(torch.randn(n)), leave=nn.Linear(n, x[2]))


@_tokens
def scan_of_states(d: Draw, x: Shape) -> nn.Module:
    """A selective scan: states of a size of their own for every channel."""
    n, s = d.width(), 3

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        u = m.enter(x)
        step, b, c = m.select(u).split([1, s, s], dim=-1)
        a = -torch.exp(m.a)
        state, out = u.new_zeros(u.shape[0], u.shape[2], s), []
        for t in range(u.shape[1]):
            delta = F.softplus(step[:, t])[..., None]
            state = torch.exp(delta * a) * state + delta * b[:, t, None] * u[:, t, :, None]
            out.append((state * c[:, t, None]).sum(-1))
        return m.leave(torch.stack(out, 1) + u * m.skip)

    return built(
        forward,
        enter=nn.Linear(x[2], n),
        select=nn.Linear(n, 1 + 2 * s),
        a=nn.Parameter(torch.randn(n, s)),
        skip=nn.Parameter(torch.ones(n)),
        leave=nn.Linear(n, x[2]),
    )
