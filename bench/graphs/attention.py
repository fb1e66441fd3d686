"""Pieces of attention, as people write it: torch's modules, one fused matrix, shared keys, masks, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.pieces import Draw, Kind, Shape, built, piece
from bench.graphs.tokens import token_norm

_tokens = piece(Kind.TOKENS)
_masked = piece(Kind.TOKENS, Kind.MASK)


def heads(d: Draw) -> tuple[int, int]:
    """How many, and how large each is; sometimes as large as many."""
    return d.of((2, 4), (4, 2), (4, 4), (3, 4), (2, 8))


def residual(d: Draw, c: int, inner: nn.Module) -> nn.Module:
    """With the norm before, after or not at all."""
    if d.chance(0.3):
        return built(lambda m, x: x + m.inner(x), inner=inner)
    return d.of(
        built(lambda m, x: x + m.inner(m.norm(x)), inner=inner, norm=token_norm(d, c)),
        built(lambda m, x: m.norm(x + m.inner(x)), inner=inner, norm=token_norm(d, c)),
    )


@_tokens
def module_attention(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] % 2:
        return None
    h = d.of(2, 4) if x[2] % 4 == 0 else 2
    weights, first = d.chance(), d.chance(0.7)
    layer = nn.MultiheadAttention(x[2], h, batch_first=first, bias=d.chance(), add_bias_kv=d.chance(0.2))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x if first else x.transpose(0, 1)
        y = m.layer(y, y, y, need_weights=weights)[0]
        return y if first else y.transpose(0, 1)

    return residual(d, x[2], built(forward, layer=layer))


@_masked
def padded_module_attention(d: Draw, x: Shape, mask: Shape) -> nn.Module | None:
    if mask[1] != x[1] or x[2] % 2:
        return None
    layer = nn.MultiheadAttention(x[2], 2, batch_first=True)
    return built(lambda m, x, mask: x + m.layer(x, x, x, key_padding_mask=~mask, need_weights=False)[0], layer=layer)


@_masked
def padded_encoder(d: Draw, x: Shape, mask: Shape) -> nn.Module | None:
    if mask[1] != x[1] or x[2] % 2:
        return None
    layer = nn.TransformerEncoderLayer(x[2], 2, d.width(), batch_first=True, norm_first=d.chance())
    return built(
        lambda m, x, mask: m.layers(x, src_key_padding_mask=~mask),
        layers=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
    )


@_tokens
def encoder(d: Draw, x: Shape) -> nn.Module | None:
    if x[2] % 2:
        return None
    options = {"batch_first": True, "norm_first": d.chance(), "activation": d.of("relu", "gelu")}
    layer = nn.TransformerEncoderLayer(x[2], 2, d.width(), **options)
    return nn.TransformerEncoder(layer, d.of(1, 2), enable_nested_tensor=False) if d.chance() else layer


@_tokens
def fused_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)
    h = x[2] // 2 if (whole := d.chance()) else h
    k = 2 if whole else k
    softmax = d.chance()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if softmax:
            weights = (q @ k.transpose(-2, -1) * m.scale).softmax(dim=-1)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return m.proj(y.transpose(1, 2).reshape(b, n, -1))

    layer = built(
        forward,
        num_heads=h,
        head_dim=k,
        scale=k**-0.5,
        qkv=nn.Linear(x[2], 3 * h * k, bias=d.chance()),
        proj=nn.Linear(h * k, x[2]),
    )
    return residual(d, x[2], layer)


@_tokens
def chunked_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, m.h, -1).transpose(1, 2) for t in m.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=m.causal)
        return m.out(y.transpose(1, 2).flatten(2))

    return residual(
        d, x[2], built(forward, h=h, causal=d.chance(), qkv=nn.Linear(x[2], 3 * h * k), out=nn.Linear(h * k, x[2]))
    )


@_tokens
def split_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.size()
        q, k, v = m.c_attn(x).split(m.n_embd, dim=2)
        k = k.view(b, n, m.n_head, m.n_embd // m.n_head).transpose(1, 2)
        q = q.view(b, n, m.n_head, m.n_embd // m.n_head).transpose(1, 2)
        v = v.view(b, n, m.n_head, m.n_embd // m.n_head).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1)) * k.size(-1) ** -0.5
        weights = weights.masked_fill(m.mask[:, :, :n, :n] == 0, float("-inf")).softmax(-1)
        return m.c_proj((weights @ v).transpose(1, 2).contiguous().view(b, n, m.n_embd))

    layer = built(
        forward,
        n_head=h,
        n_embd=h * k,
        c_attn=nn.Linear(x[2], 3 * h * k),
        c_proj=nn.Linear(h * k, x[2]),
        mask=torch.tril(torch.ones(x[1], x[1]))[None, None],
    )
    return residual(d, x[2], layer)


@_tokens
def shared_keys_attention(d: Draw, x: Shape) -> nn.Module:
    kv, each, k = d.of((2, 2, 4), (1, 4, 2), (2, 3, 2), (4, 2, 4))
    expands = d.chance()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, -1, m.head_dim).transpose(1, 2)
        k = m.k(x).view(b, n, -1, m.head_dim).transpose(1, 2)
        v = m.v(x).view(b, n, -1, m.head_dim).transpose(1, 2)
        if expands:
            k = k[:, :, None].expand(b, m.kv, m.each, n, m.head_dim).reshape(b, m.kv * m.each, n, m.head_dim)
            v = v[:, :, None].expand(b, m.kv, m.each, n, m.head_dim).reshape(b, m.kv * m.each, n, m.head_dim)
        else:
            k, v = k.repeat_interleave(m.each, 1), v.repeat_interleave(m.each, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.o(y.transpose(1, 2).reshape(b, n, -1))

    layer = built(
        forward,
        kv=kv,
        each=each,
        head_dim=k,
        q=nn.Linear(x[2], kv * each * k),
        k=nn.Linear(x[2], kv * k),
        v=nn.Linear(x[2], kv * k),
        o=nn.Linear(kv * each * k, x[2]),
    )
    return residual(d, x[2], layer)


@_tokens
def grouped_by_view(d: Draw, x: Shape) -> nn.Module:
    """Query heads in groups along a dimension of their own, against the group's one key head."""
    kv, each, k = 2, d.of(2, 3), d.of(2, 4)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, kv, each, k)
        keys, values = m.kv(x).view(b, n, 2, kv, k).unbind(2)
        weights = torch.einsum("bqgek,bngk->bgeqn", q, keys).softmax(-1)
        return m.o(torch.einsum("bgeqn,bngk->bqgek", weights, values).reshape(b, n, kv * each * k))

    layer = built(
        forward, q=nn.Linear(x[2], kv * each * k), kv=nn.Linear(x[2], 2 * kv * k), o=nn.Linear(kv * each * k, x[2])
    )
    return residual(d, x[2], layer)


@_tokens
def rotary_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = d.of((2, 4), (4, 4), (4, 2))
    angle = torch.arange(x[1])[:, None] / (1 + torch.arange(k // 2))
    normed = d.chance()

    def rotate(x: Tensor) -> Tensor:
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-b, a), dim=-1)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, m.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (m.q_proj, m.k_proj, m.v_proj))
        if normed:
            q, k = m.q_norm(q), m.k_norm(k)
        q, k = q * m.cos + rotate(q) * m.sin, k * m.cos + rotate(k) * m.sin
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.o_proj(y.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous())

    layer = built(
        forward,
        head_dim=k,
        cos=torch.cat([angle, angle], -1).cos(),
        sin=torch.cat([angle, angle], -1).sin(),
        q_norm=nn.RMSNorm(k),
        k_norm=nn.RMSNorm(k),
        **{f"{name}_proj": nn.Linear(x[2], h * k, bias=False) for name in "qkv"},
        o_proj=nn.Linear(h * k, x[2], bias=False),
    )
    return residual(d, x[2], layer)


@_tokens
def biased_attention(d: Draw, x: Shape) -> nn.Module:
    """A learned bias for every pair of places and head."""
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, m.h, -1).permute(2, 0, 3, 1, 4)
        bias = m.table[m.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        y = ((q * m.scale) @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1) @ v
        return m.proj(y.transpose(1, 2).reshape(b, n, -1))

    places = torch.arange(x[1])
    layer = built(
        forward,
        h=h,
        scale=k**-0.5,
        table=nn.Parameter(torch.randn(2 * x[1] - 1, h)),
        index=places[:, None] - places[None] + x[1] - 1,
        qkv=nn.Linear(x[2], 3 * h * k),
        proj=nn.Linear(h * k, x[2]),
    )
    return residual(d, x[2], layer)


@_tokens
def window_attention(d: Draw, x: Shape) -> nn.Module | None:
    if x[1] % 4:
        return None
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, c = x.shape
        windows = x.view(b, n // 4, 4, c).reshape(-1, 4, c)
        q, k, v = m.qkv(windows).reshape(-1, 4, 3, m.h, m.d).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, m.h * m.d)
        return m.proj(y).view(b, n, c)

    return residual(d, x[2], built(forward, h=h, d=k, qkv=nn.Linear(x[2], 3 * h * k), proj=nn.Linear(h * k, x[2])))


@_tokens
def linear_attention(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (m.h, -1)).transpose(1, 2) for t in (m.q(x), m.k(x), m.v(x)))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(2, keepdim=True).transpose(-2, -1) + 1e-6)
        return m.o(y.transpose(1, 2).flatten(-2))

    layer = built(forward, h=h, **{name: nn.Linear(x[2], h * k) for name in "qkv"}, o=nn.Linear(h * k, x[2]))
    return residual(d, x[2], layer)


@_tokens
def attention_over_channels(d: Draw, x: Shape) -> nn.Module:
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, m.h, -1).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = ((q @ k.transpose(-2, -1)) * m.heat).softmax(-1) @ v
        return m.proj(y.permute(0, 3, 1, 2).reshape(b, n, -1))

    layer = built(
        forward,
        h=h,
        heat=nn.Parameter(torch.rand(h, 1, 1)),
        qkv=nn.Linear(x[2], 3 * h * k),
        proj=nn.Linear(h * k, x[2]),
    )
    return residual(d, x[2], layer)


@_tokens
def latents(d: Draw, x: Shape) -> nn.Module:
    """Learned queries read the tokens."""
    h, k = heads(d)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b = x.shape[0]
        q = m.q(m.queries).view(1, -1, m.h, m.d).transpose(1, 2).expand(b, -1, -1, -1)
        k = m.k(x).view(b, -1, m.h, m.d).transpose(1, 2)
        v = m.v(x).view(b, -1, m.h, m.d).transpose(1, 2)
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, m.h * m.d))

    return built(
        forward,
        h=h,
        d=k,
        queries=nn.Parameter(torch.randn(1, d.of(2, 4), x[2])),
        q=nn.Linear(x[2], h * k),
        k=nn.Linear(x[2], h * k),
        v=nn.Linear(x[2], h * k),
        o=nn.Linear(h * k, x[2]),
    )


@_masked
def padded_attention(d: Draw, x: Shape, mask: Shape) -> nn.Module | None:
    if mask[1] != x[1]:
        return None
    h, k = heads(d)
    adds = d.chance()

    def forward(m: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, m.h, m.d).transpose(1, 2) for t in (m.q(x), m.k(x), m.v(x)))
        allowed = mask[:, None, None, :]
        if adds:
            bias = torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, torch.finfo(x.dtype).min)
            y = (q @ k.mT / m.d**0.5 + bias).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed.expand(b, m.h, n, n))
        return x + m.o(y.transpose(1, 2).reshape(b, n, m.h * m.d))

    return built(forward, h=h, d=k, **{name: nn.Linear(x[2], h * k) for name in "qkv"}, o=nn.Linear(h * k, x[2]))


@_tokens
def attention_then_mlp(d: Draw, x: Shape) -> nn.Module:
    """Both at once from one matrix, as in parallel blocks."""
    h, k = heads(d)
    n = d.width()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v, up = m.enter(m.norm(x)).split((m.h * m.d, m.h * m.d, m.h * m.d, m.n), dim=-1)
        q, k, v = (y.view(b, t, m.h, m.d).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, m.h * m.d)
        return x + m.leave(torch.cat([y, F.gelu(up)], -1))

    return built(
        forward,
        h=h,
        d=k,
        n=n,
        norm=token_norm(d, x[2]),
        enter=nn.Linear(x[2], 3 * h * k + n),
        leave=nn.Linear(h * k + n, x[2]),
    )
