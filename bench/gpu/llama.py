"""A Llama without a library of models: shapes and operators of `LlamaForCausalLM`, random weights made on a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Config:
    """By the names that its `config.json` has, as far as shapes depend on them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


LLAMA_1B = Config(32000, 2048, 5632, 22, 32, 4)  # TinyLlama's: 1.1 billion parameters
THETA = 10_000.0


class Attention(nn.Module):
    """Grouped queries, rotated by their places; causal."""

    def __init__(self, config: Config, places: int) -> None:
        super().__init__()
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        self.size, self.repeat = config.hidden_size // heads, heads // shared
        self.q_proj = nn.Linear(config.hidden_size, heads * self.size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, shared * self.size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.size, config.hidden_size, bias=False)
        turns = torch.arange(0, self.size, 2, dtype=torch.float32) / self.size
        angles = torch.outer(torch.arange(places, dtype=torch.float32), THETA**-turns).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotated(q), self.rotated(k)
        k, v = k.repeat_interleave(self.repeat, 1), v.repeat_interleave(self.repeat, 1)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * self.cos[: x.shape[2]] + turned * self.sin[: x.shape[2]]


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, narrow = config.intermediate_size, config.hidden_size
        self.gate_proj, self.up_proj = (nn.Linear(narrow, wide, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(wide, narrow, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config, places: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(config.hidden_size, 1e-5) for _ in range(2))
        self.self_attn, self.mlp = Attention(config, places), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Takes ids `[N, T]` of at most `places` tokens, gives logits `[N, T, vocab_size]`."""

    def __init__(self, config: Config, places: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, places) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, 1e-5)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def llama(
    config: Config, places: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Llama:
    """In eval mode, its weights drawn where they lie; global generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return Llama(config, places).to(dtype).eval()


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy of each place's next token."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
