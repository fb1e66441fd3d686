"""Networks with residual blocks, for whoever tests branches as units."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8


class Attention(nn.Module):
    """Returns what it makes and its weights, as many do; its keys and values may be kept under its number."""

    def __init__(self, heads: int = 2, number: int = 0) -> None:
        super().__init__()
        self.heads, self.layer_idx = heads, number
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None, kept: list[Any] | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = (f(x).unflatten(-1, (-1, WIDTH // 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if kept is not None:
            kept[self.layer_idx] = k
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2)), weights


class Mlp(nn.Module):
    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class PreNorm(nn.Module):
    """A block of Llama's kind; with `after`, norms behind the branches as well, as Gemma's."""

    def __init__(self, number: int = 0, after: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention(number=number)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp()
        self.after1, self.after2 = (nn.LayerNorm(WIDTH) if after else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after1(self.attention(self.norm1(x))[0])
        return x + self.after2(self.mlp(self.norm2(x)))


class PostNorm(nn.Module):
    """A block of BERT's kind: the norm runs over stream and branch."""

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(number=number), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x)[0])
        return self.norm2(self.mlp(x) + x)


class Parallel(nn.Module):
    """A block of GPT-J's kind: both branches read one norm of the stream."""

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(WIDTH), Attention(number=number), Mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        read = self.norm(x)
        mixed, weights = self.attention(read)
        return mixed + self.mlp(read) + x, weights


class Inline(nn.Module):
    """A block whose own code attends, a key for two queries, and whose gate is half of a projection."""

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.norm1, self.q, self.kv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.o, self.norm2 = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.gate_up, self.down = nn.Linear(WIDTH, 20), nn.Linear(10, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm1(x)
        q = self.q(read).unflatten(-1, (-1, WIDTH // 2)).transpose(1, 2)
        k, v = (half.unflatten(-1, (-1, WIDTH // 2)).transpose(1, 2) for half in self.kv(read).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Language(nn.Module):
    """Embedding, blocks, norm and head."""

    def __init__(self, kind: type[nn.Module] = PreNorm, blocks: int = 4, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(kind(number, **options) for number in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            made = block(x)
            x = made[0] if isinstance(made, tuple) else made
        return self.head(self.norm(x))


class Basic(nn.Module):
    """ResNet's block, in place where ResNet's is; `narrow`: with a bottleneck."""

    def __init__(self, inside: int, channels: int, stride: int = 1, narrow: bool = False) -> None:
        super().__init__()
        middle = channels // 2 if narrow else channels
        self.conv1, self.bn1 = nn.Conv2d(inside, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(inside, channels, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class Residual(nn.Module):
    """A stem, two stages of blocks, of which the second begins with a projection, and a head."""

    def __init__(self, narrow: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage1 = nn.Sequential(*(Basic(8, 8, narrow=narrow) for _ in range(3)))
        self.stage2 = nn.Sequential(Basic(8, 12, 2, narrow=narrow), *(Basic(12, 12, narrow=narrow) for _ in range(2)))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


def tokens(samples: int = 2, length: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, (samples, length), generator=torch.Generator().manual_seed(seed))


def images(samples: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
