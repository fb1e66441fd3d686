"""A small decoder with a configuration of its own, and ways in which its code may go by sizes or places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Config:
    """What a decoder is built from; `validate` asks what it was given, as transformers' does."""

    def __init__(self, **given: Any) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = 96, 48, 80
        self.num_attention_heads, self.head_dim, self.num_hidden_layers = 8, 6, 7
        self.__dict__.update(given)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.__dict__)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Config:
        return cls(**given)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.size = config.num_attention_heads, config.head_dim
        inner = self.heads * self.size
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, self.heads, self.size).transpose(1, 2) for m in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) * self.size**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, self.heads * self.size))


class Mlp(nn.Module):
    """`between`: what is done with the neurons, `between(mlp, h)`."""

    between: Callable[[Any, Tensor], Tensor] = staticmethod(lambda mlp, h: h)

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.index, self.width = index, config.intermediate_size
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(type(self).between(self, torch.relu(self.up(x))))


class Block(nn.Module):
    mlp_class = Mlp

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(config.hidden_size), Attention(config)
        self.norm2, self.mlp = nn.LayerNorm(config.hidden_size), self.mlp_class(config, index)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    block = Block

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("scale", torch.full((config.hidden_size,), 0.5), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def decoder(between: Callable[[Any, Tensor], Tensor] | None = None, **given: Any) -> nn.Module:
    """A decoder of this configuration, in eval mode, with what is done between the layers of its MLPs."""
    torch.manual_seed(0)
    if between is None:
        return Decoder(Config(**given)).eval()

    class OwnMlp(Mlp):
        pass

    class OwnBlock(Block):
        mlp_class = OwnMlp

    class OwnDecoder(Decoder):
        block = OwnBlock

    OwnMlp.between = staticmethod(between)
    return OwnDecoder(Config(**given)).eval()


IDS = torch.arange(20).remainder(13).view(2, 10)
