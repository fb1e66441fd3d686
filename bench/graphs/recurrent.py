"""Pieces with recurrent layers, and on waves [b, c, n]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.images import activation
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_tokens = piece(Kind.TOKENS)
_wave = piece(Kind.WAVE)


def layer(d: Draw, size: int, hidden: int, **options: bool | int) -> nn.RNNBase:
    return d.of(nn.LSTM, nn.GRU, nn.RNN)(size, hidden, batch_first=True, **options)


@_tokens
def recurrent(d: Draw, x: Shape) -> nn.Module:
    options = {"num_layers": d.of(1, 2), "bidirectional": d.chance(), "bias": d.chance(0.8)}
    return built(lambda m, x: m.layer(x)[0], layer=layer(d, x[2], d.width(), **options))


@_tokens
def recurrent_time_first(d: Draw, x: Shape) -> nn.Module:
    inner = nn.GRU(x[2], d.width(), bidirectional=d.chance())
    return built(lambda m, x: m.layer(x.transpose(0, 1))[0].transpose(0, 1), layer=inner)


@_tokens
def recurrent_residual(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    return built(
        lambda m, x: x + m.out(m.layer(m.norm(x))[0]),
        norm=nn.LayerNorm(x[2]),
        layer=layer(d, x[2], n),
        out=nn.Linear(n, x[2]),
    )


@_tokens
def recurrent_from_zeros(d: Draw, x: Shape) -> nn.Module:
    """With a first state that the code makes."""
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = torch.zeros(1, x.size(0), m.hidden_size, dtype=x.dtype)
        return m.layer(x, state)[0]

    return built(forward, hidden_size=n, layer=nn.GRU(x[2], n, batch_first=True))


@piece(Kind.TOKENS, to=Kind.VECTOR)
def last_state(d: Draw, x: Shape) -> nn.Module:
    both = d.chance()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        _, h = m.layer(x)
        h = h[0] if isinstance(h, tuple) else h
        return torch.cat([h[-2], h[-1]], 1) if both else h[-1]

    return built(forward, layer=layer(d, x[2], d.width(), bidirectional=both))


@piece(Kind.TOKENS, to=Kind.VECTOR)
def cells(d: Draw, x: Shape) -> nn.Module:
    kind, n = d.of(nn.LSTMCell, nn.GRUCell), d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return state[0] if kind is nn.LSTMCell else state

    return built(forward, cell=kind(x[2], n))


@piece(Kind.TOKENS, to=Kind.VECTOR)
def own_recurrence(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], m.n)
        for t in range(x.shape[1]):
            state = torch.tanh(m.enter(torch.cat([x[:, t], state], dim=1)))
        return state

    return built(forward, n=n, enter=nn.Linear(x[2] + n, n))


@piece(Kind.TOKENS, Kind.TOKENS)
def reader_and_writer(d: Draw, x: Shape, y: Shape) -> nn.Module:
    """One layer's last state begins the other's."""
    n = d.width()

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        _, state = m.read(y)
        return m.write(x, state)[0]

    return built(forward, read=nn.GRU(y[2], n, batch_first=True), write=nn.GRU(x[2], n, batch_first=True))


@_wave
def conv_1d(d: Draw, x: Shape) -> nn.Module:
    return nn.Conv1d(x[1], d.width(), 3, padding=1, bias=d.chance())


@_wave
def block_1d(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    normed = d.of(nn.BatchNorm1d(n), nn.GroupNorm(d.divisor(n), n), nn.InstanceNorm1d(n, affine=True))
    return nn.Sequential(nn.Conv1d(x[1], n, 3, padding=2, dilation=2), normed, activation(d))


@_wave
def grouped_1d(d: Draw, x: Shape) -> nn.Module | None:
    groups = d.divisor(x[1])
    return nn.Conv1d(x[1], groups * d.of(1, 2), 3, padding=1, groups=groups) if groups > 1 else None


@_wave
def causal(d: Draw, x: Shape) -> nn.Module:
    c = x[1]
    return built(lambda m, x: m.conv(F.pad(x, (2, 0))), conv=nn.Conv1d(c, c, 3, groups=c))


@_wave
def causal_cut(d: Draw, x: Shape) -> nn.Module:
    c = x[1]
    return built(lambda m, x: F.silu(m.conv(x)[..., : x.shape[-1]]), conv=nn.Conv1d(c, c, 4, padding=3, groups=c))


@_wave
def glu_1d(d: Draw, x: Shape) -> nn.Module:
    return nn.Sequential(nn.Conv1d(x[1], 2 * d.width(), 1), nn.GLU(1))


@_wave
def transposed_1d(d: Draw, x: Shape) -> nn.Module:
    return nn.ConvTranspose1d(x[1], d.width(), 3, padding=1)


@_wave
def skip_and_residual(d: Draw, x: Shape) -> nn.Module:
    """Gated layers, each adding to the stream and to a sum of its own (WaveNet)."""
    c, n, s = x[1], d.width(), d.width()
    gates = nn.ModuleList(nn.Conv1d(c, 2 * n, 3, padding=1) for _ in range(2))
    outs = nn.ModuleList(nn.Conv1d(n, c + s, 1) for _ in range(2))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        total = 0
        for gate, out in zip(m.gates, m.outs, strict=True):
            a, b = gate(x).chunk(2, 1)
            y = out(a.tanh() * b.sigmoid())
            x, skip = x + y[:, :c], y[:, c:]
            total = total + skip
        return torch.cat([x, F.relu(total)], 1)

    return built(forward, gates=gates, outs=outs)


@_wave
def residual_1d(d: Draw, x: Shape) -> nn.Module:
    n = d.width()
    inner = nn.Sequential(
        nn.BatchNorm1d(x[1]), nn.ReLU(), nn.Conv1d(x[1], n, 1), nn.ReLU(), nn.Conv1d(n, x[1], 3, padding=1)
    )
    return built(lambda m, x: x + m.inner(x), inner=inner)


@_wave
def pooled_1d(d: Draw, x: Shape) -> nn.Module | None:
    return d.of(nn.MaxPool1d(2), nn.AvgPool1d(3, 1, 1), nn.AdaptiveMaxPool1d(4)) if x[2] >= 8 else None


@_wave
def linear_over_time(d: Draw, x: Shape) -> nn.Module:
    return nn.Linear(x[2], x[2])


@_wave
def attentive_statistics(d: Draw, x: Shape) -> nn.Module:
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        weights = m.b(torch.tanh(m.a(x))).softmax(-1)
        mean = (weights * x).sum(-1, keepdim=True)
        return torch.cat([x, (x - mean).square()], 1)

    return built(forward, a=nn.Conv1d(x[1], n, 1), b=nn.Conv1d(n, x[1], 1))


@piece(Kind.WAVE, to=Kind.TOKENS)
def tokens_of_wave(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x.transpose(1, 2).contiguous())


@piece(Kind.TOKENS, to=Kind.WAVE)
def wave_of_tokens(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x.permute(0, 2, 1))


@piece(Kind.WAVE, to=Kind.VECTOR)
def statistics(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: torch.cat([x.mean(2), x.amax(2), x.std(2)], 1))
