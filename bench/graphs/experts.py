"""Pieces with experts: lists, routed and dense; all in one parameter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.graphs.pieces import Draw, Kind, Shape, built, piece
from bench.zoo.mixtures import MIXTURES

_tokens = piece(Kind.TOKENS)


class Fused(nn.Module):
    """Experts in two parameters, tokens sorted to them one expert after the other."""

    def __init__(self, experts: int, width: int, inner: int, k: int) -> None:
        super().__init__()
        self.num_experts, self.inner, self.k = experts, inner, k
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * inner, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, width, inner) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.router(flat).softmax(-1).topk(self.k, -1)
        out = torch.zeros_like(flat)
        for e in range(self.num_experts):
            token, slot = torch.where(index == e)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, -1)
            out.index_add_(0, token, F.linear(F.silu(gate) * up, self.down[e]) * weights[token, slot, None])
        return out.reshape(x.shape)


class Batched(nn.Module):
    """Every expert on every token, by two products of stacks."""

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, inner) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, width) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("bnc,ecf->bnef", x, self.up))
        return torch.einsum("bnef,efc,bne->bnc", hidden, self.down, shares)


@_tokens
def listed_experts(d: Draw, x: Shape) -> nn.Module:
    sizes = tuple(d.of(4, 6, 8) for _ in range(4))
    return built(lambda m, x: x + m.mix(x), mix=MIXTURES[d.of(*MIXTURES)](x[2], sizes))


@_tokens
def fused_experts(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x + m.mix(x), mix=Fused(4, x[2], d.of(4, 6), 2))


@_tokens
def batched_experts(d: Draw, x: Shape) -> nn.Module:
    return built(lambda m, x: x + m.mix(x), mix=Batched(3, x[2], d.of(4, 6)))
