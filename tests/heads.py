"""nn.MultiheadAttention alone and in a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, N, L, S = 24, 4, 3, 5, 7


def attention(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


class Block(nn.Module):
    """Attention between a LayerNorm and a residual stream; `call` says how it is used."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.norm, self.attn, self.head = nn.LayerNorm(WIDTH), attention(**options), nn.Linear(WIDTH, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.call(self.attn, self.norm(x)))
