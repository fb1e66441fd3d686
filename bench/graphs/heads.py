"""Pieces of attention in less usual forms: heads that are mixed, gated, subtracted, shared; weights in parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.attention import heads, residual
from bench.graphs.pieces import Draw, Kind, Shape, built, piece

_tokens = piece(Kind.TOKENS)


def _parts(d: Draw, x: Shape, h: int, k: int) -> dict[str, nn.Module]:
    return {**{name: nn.Linear(x[2], h * k) for name in "qkv"}, "o": nn.Linear(h * k, x[2])}


def _split(m: nn.Module, x: Tensor) -> list[Tensor]:
    """Query, key and value, [b, h, n, d]."""
    return [layer(x).unflatten(-1, (m.h, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v)]


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


@_tokens
def talking_heads(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        scores = m.before((q @ k.mT).permute(0, 2, 3, 1)).softmax(-2)
        return m.o(_joined(m.after(scores).permute(0, 3, 1, 2) @ v))

    return residual(d, x[2], built(forward, h=h, before=nn.Linear(h, h), after=nn.Linear(h, h), **_parts(d, x, h, k)))


@_tokens
def gated_heads(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*_split(m, x))
        return m.o(_joined(y * m.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)))

    return residual(d, x[2], built(forward, h=h, gate=nn.Linear(x[2], h), **_parts(d, x, h, k)))


@_tokens
def gated_output(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = _joined(F.scaled_dot_product_attention(*_split(m, x)))
        return m.o(y * F.silu(m.gate(x)))

    return residual(d, x[2], built(forward, h=h, gate=nn.Linear(x[2], h * k), **_parts(d, x, h, k)))


@_tokens
def differential(d: Draw, x: Shape) -> nn.Module:
    """One softmax less another, of two halves of every query."""
    h, k = d.of(2, 4), 4

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, 2 * m.h, 2).transpose(1, 2)
        k = m.k(x).view(b, n, 2 * m.h, 2).transpose(1, 2)
        v = m.v(x).view(b, n, m.h, 4).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2)).softmax(-1).view(b, m.h, 2, n, n)
        y = m.norm((weights[:, :, 0] - m.share * weights[:, :, 1]) @ v)
        return m.o(y.transpose(1, 2).reshape(b, n, m.h * 4))

    return residual(
        d, x[2], built(forward, h=h, share=nn.Parameter(torch.tensor(0.5)), norm=nn.RMSNorm(4), **_parts(d, x, h, k))
    )


@_tokens
def cosine_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        scale = torch.clamp(m.scale, max=4.6).exp()
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * scale
        return m.o(_joined(scores.softmax(-1) @ v))

    return residual(d, x[2], built(forward, h=h, scale=nn.Parameter(torch.randn(h, 1, 1)), **_parts(d, x, h, k)))


@_tokens
def sloped_attention(d: Draw, x: Shape) -> nn.Module:
    """A slope for every head, kept or made anew."""
    h, k = d.of((2, 4), (4, 2), (4, 4))
    made = d.chance(0.3)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        place = torch.arange(x.shape[1], dtype=x.dtype)
        far = (place[None] - place[:, None]).abs()
        slopes = 2.0 ** -torch.arange(1, m.h + 1, dtype=x.dtype) if made else m.slopes
        return m.o(_joined(F.scaled_dot_product_attention(q, k, v, attn_mask=-far * slopes[:, None, None])))

    return residual(d, x[2], built(forward, h=h, slopes=2.0 ** -torch.arange(1.0, h + 1), **_parts(d, x, h, k)))


@_tokens
def bias_by_distance(d: Draw, x: Shape) -> nn.Module:
    """A table looked up by distance, with a column for every head (T5)."""
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        place = torch.arange(x.shape[1])
        bias = m.table((place[None] - place[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1).unsqueeze(0)
        return m.o(_joined((q @ k.mT + bias).softmax(-1) @ v))

    return residual(d, x[2], built(forward, h=h, table=nn.Embedding(7, h), **_parts(d, x, h, k)))


@_tokens
def one_key_head(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).split([m.h * m.d, m.d, m.d], -1)
        q = q.view(b, n, m.h, m.d).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k[:, None].expand(-1, m.h, -1, -1), v[:, None].expand(-1, m.h, -1, -1))
        return m.o(y.transpose(1, 2).reshape(b, n, m.h * m.d))

    return residual(d, x[2], built(forward, h=h, d=k, qkv=nn.Linear(x[2], (h + 2) * k), o=nn.Linear(h * k, x[2])))


@_tokens
def enabled_groups(d: Draw, x: Shape) -> nn.Module:
    kv, each, k = 2, d.of(1, 2), 4

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.o(y.transpose(1, 2).reshape(b, n, -1))

    layers = {"q": nn.Linear(x[2], kv * each * k), "k": nn.Linear(x[2], kv * k), "v": nn.Linear(x[2], kv * k)}
    return residual(d, x[2], built(forward, **layers, o=nn.Linear(kv * each * k, x[2])))


@_tokens
def biases_in_parts(d: Draw, x: Shape) -> nn.Module:
    """One matrix with biases for queries and values, none for keys (BEiT)."""
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = torch.cat((m.q_bias, torch.zeros_like(m.v_bias, requires_grad=False), m.v_bias))
        q, k, v = F.linear(x, m.qkv.weight, bias).reshape(b, n, 3, m.h, -1).permute(2, 0, 3, 1, 4)
        return m.o(_joined(F.scaled_dot_product_attention(q, k, v)))

    parts = {name: nn.Parameter(torch.randn(h * k)) for name in ("q_bias", "v_bias")}
    return residual(
        d, x[2], built(forward, h=h, qkv=nn.Linear(x[2], 3 * h * k, bias=False), o=nn.Linear(h * k, x[2]), **parts)
    )


@_tokens
def weight_in_thirds(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            F.linear(x, w, c).view(b, n, m.h, m.d).transpose(1, 2)
            for w, c in zip(m.w.chunk(3), m.b.chunk(3), strict=True)
        )
        return m.o(_joined(F.scaled_dot_product_attention(q, k, v)))

    return residual(
        d,
        x[2],
        built(
            forward,
            h=h,
            d=k,
            w=nn.Parameter(torch.randn(3 * h * k, x[2])),
            b=nn.Parameter(torch.randn(3 * h * k)),
            o=nn.Linear(h * k, x[2]),
        ),
    )


@_tokens
def torch_function(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] % 2:
        return None
    c = x[2]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            y,
            y,
            y,
            c,
            2,
            m.weight,
            m.bias,
            None,
            None,
            False,
            0.0,
            m.out.weight,
            m.out.bias,
            training=m.training,
            need_weights=False,
        )
        return x + out.transpose(0, 1)

    return built(
        forward, weight=nn.Parameter(torch.randn(3 * c, c)), bias=nn.Parameter(torch.randn(3 * c)), out=nn.Linear(c, c)
    )


@_tokens
def latent_keys(d: Draw, x: Shape) -> nn.Module:
    """Keys and values from a few shared numbers, with a part of the key for its place (DeepSeek)."""
    h, k, r, p = d.of(2, 4), 4, d.width(), 2

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, q_place = m.q(x).view(b, n, m.h, -1).transpose(1, 2).split([k, p], -1)
        low, k_place = m.down(x).split([m.r, p], -1)
        k_, v = m.up(m.norm(low)).view(b, n, m.h, -1).transpose(1, 2).split([k, k], -1)
        k_place = k_place.view(b, 1, n, p).expand(-1, m.h, -1, -1)
        y = F.scaled_dot_product_attention(torch.cat([q, q_place], -1), torch.cat([k_, k_place], -1), v)
        return m.o(y.transpose(1, 2).reshape(b, n, -1))

    layers = {
        "q": nn.Linear(x[2], h * (k + p)),
        "down": nn.Linear(x[2], r + p),
        "up": nn.Linear(r, h * 2 * k),
        "o": nn.Linear(h * k, x[2]),
    }
    return residual(d, x[2], built(forward, h=h, r=r, norm=nn.RMSNorm(r), **layers))


@_tokens
def along_both_axes(d: Draw, x: Shape) -> nn.Module | None:
    """Tokens of a grid, rows first, then columns."""
    if x[1] != 9:
        return None
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.unflatten(1, (3, 3))
        for dim in (1, 2):
            lines = y.movedim(dim, 2).flatten(0, 1)
            lines = m.o(_joined(F.scaled_dot_product_attention(*_split(m, lines))))
            y = y + lines.unflatten(0, (x.shape[0], 3)).movedim(2, dim)
        return y.flatten(1, 2)

    return built(forward, h=h, **_parts(d, x, h, k))


@_tokens
def keys_of_an_earlier_layer(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        x = x + m.o(_joined(F.scaled_dot_product_attention(q, k, v)))
        q = m.q2(x).unflatten(-1, (m.h, -1)).transpose(1, 2)
        return x + m.o2(_joined(F.scaled_dot_product_attention(q, k, v)))

    return built(forward, h=h, q2=nn.Linear(x[2], h * k), o2=nn.Linear(h * k, x[2]), **_parts(d, x, h, k))


@_tokens
def heads_in_a_list(d: Draw, x: Shape) -> nn.Module:
    k = d.of(2, 4)

    def one(m: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))

    listed = nn.ModuleList(built(one, **{name: nn.Linear(x[2], k) for name in "qkv"}) for _ in range(3))
    return residual(
        d, x[2], built(lambda m, x: m.o(torch.cat([h(x) for h in m.heads], -1)), heads=listed, o=nn.Linear(3 * k, x[2]))
    )


@_tokens
def normed_heads(d: Draw, x: Shape) -> nn.Module:
    """A norm over what each head gives, or over all heads."""
    h, k = heads(d)
    norm = d.of(nn.LayerNorm(k), nn.GroupNorm(h, h * k), nn.LayerNorm(h * k))
    apart = isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (k,)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*_split(m, x))
        y = _joined(m.norm(y)) if apart else _joined(y)
        if isinstance(m.norm, nn.GroupNorm):
            y = m.norm(y.flatten(0, 1)).view_as(y)
        elif not apart:
            y = m.norm(y)
        return m.o(y)

    return residual(d, x[2], built(forward, h=h, norm=norm, **_parts(d, x, h, k)))


@_tokens
def retention(d: Draw, x: Shape) -> nn.Module:
    """Attention without a softmax, decayed at a rate of every head's own."""
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = _split(m, x)
        place = torch.arange(x.shape[1], dtype=x.dtype)
        decay = torch.sigmoid(m.rate)[:, None, None] ** (place[:, None] - place[None]).clamp(min=0)
        return m.o(_joined(((q @ k.mT) * decay.tril()) @ v) * F.silu(m.g(x)))

    return residual(
        d, x[2], built(forward, h=h, rate=nn.Parameter(torch.randn(h)), g=nn.Linear(x[2], h * k), **_parts(d, x, h, k))
    )


@_tokens
def state_space_heads(d: Draw, x: Shape) -> nn.Module:
    """One matrix for gate, values, keys, queries and steps, a short convolution, a state for every head (Mamba 2)."""
    h, k, s = d.of(2, 4), d.of(2, 4), 3
    n = h * k

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        z, u, step = torch.split(m.enter(x), [n, n + 2 * s, h], dim=-1)
        u = F.silu(m.conv(u.transpose(1, 2))[..., :t].transpose(1, 2))
        u, keys, queries = torch.split(u, [n, s, s], dim=-1)
        u, step = u.view(b, t, h, k), F.softplus(step + m.bias)
        state, out = u.new_zeros(b, h, k, s), []
        for i in range(t):
            decay = torch.exp(-step[:, i] * m.rate.exp())
            state = state * decay[..., None, None] + (step[:, i, :, None] * u[:, i])[..., None] * keys[:, i, None, None]
            out.append((state * queries[:, i, None, None]).sum(-1) + m.skip[:, None] * u[:, i])
        return m.leave(torch.stack(out, 1).reshape(b, t, n) * F.silu(z))

    vectors = {name: nn.Parameter(torch.randn(h)) for name in ("rate", "bias", "skip")}
    return residual(
        d,
        x[2],
        built(
            forward,
            enter=nn.Linear(x[2], 2 * n + 2 * s + h),
            conv=nn.Conv1d(n + 2 * s, n + 2 * s, 3, padding=2, groups=n + 2 * s),
            leave=nn.Linear(n, x[2]),
            **vectors,
        ),
    )
