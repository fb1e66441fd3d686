"""A ViT, a language model with shared key heads, and one with experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu


class Attention(nn.Module):
    """`heads` query heads share `shared` key and value heads; causal or not."""

    def __init__(self, width: int, heads: int, shared: int, causal: bool) -> None:
        super().__init__()
        self.size, self.causal = width // heads, causal
        self.repeat = heads // shared
        self.q = nn.Linear(width, heads * self.size)
        self.k, self.v = (nn.Linear(width, shared * self.size) for _ in range(2))
        self.out = nn.Linear(heads * self.size, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.repeat > 1:
            k, v = k.repeat_interleave(self.repeat, 1), v.repeat_interleave(self.repeat, 1)
        y = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Every token is answered by its two likeliest experts."""

    def __init__(self, width: int, hidden: int, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(GatedMLP(width, hidden) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        top, _ = weights.topk(2, -1)
        weights = weights * (weights >= top[..., -1:])
        weights = weights / weights.sum(-1, keepdim=True)
        answers = [expert(x) * weights[..., e : e + 1] for e, expert in enumerate(self.experts)]
        return torch.stack(answers).sum(0)


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 4 × 4, a learnt position each, the mean over patches is classified."""

    def __init__(self, classes: int, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(
            *(Block(width, Attention(width, heads, heads, False), MLP(width, 4 * width)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.fc(self.norm(self.blocks(x)).mean(1))


class LanguageModel(nn.Module):
    """Characters to the next character's logits: attention with shared key heads, a gated MLP or experts."""

    def __init__(self, characters: int, width: int = 64, heads: int = 4, shared: int = 2, depth: int = 2,
                 experts: bool = False, length: int = 64) -> None:  # fmt: skip
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(
                Block(
                    width,
                    Attention(width, heads, shared, True),
                    Experts(width, width) if experts else GatedMLP(width, 3 * width),
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.characters(ids) + self.places[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))
