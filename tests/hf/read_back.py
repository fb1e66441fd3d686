"""What llama.cpp computes from a GGUF file, as an oracle: read by the gguf package, in float64, one token at a time.

It goes by the file alone, and does as llama.cpp does where that is not what one would guess: pairs of a head that are
rotated together lie beside each other in `llama` and `deci`; `deci` leaves out attention that has no MLP behind it, and
takes the size of heads from the first layer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from torch.nn import functional


class File:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.architecture = reader.fields["general.architecture"].contents()
        self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).double()
            for tensor in reader.tensors
        }
        self.read: set[str] = set()

    def number(self, name: str, layer: int | None = None, default: Any = None) -> Any:
        value = self.fields.get(f"{self.architecture}.{name}", default)
        return value[layer] if isinstance(value, list) and layer is not None else value

    def tensor(self, name: str) -> Tensor | None:
        self.read.add(name)
        return self.tensors.get(name)

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensor(f"{name}.weight")
        assert weight is not None, name
        return functional.linear(x, weight, self.tensor(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensor(f"{name}.weight")
        assert weight is not None, name
        return (
            x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.number("attention.layer_norm_rms_epsilon")) * weight
        )


def logits(path: Path, tokens: list[int]) -> Tensor:
    """[n, vocabulary]. Asserts that every tensor of the file is one that the architecture reads."""
    file = File(path)
    gemma, interleaved = file.architecture == "gemma", file.architecture in ("llama", "deci")
    size = file.number("attention.key_length") if file.number("attention.head_count", 0) else 0
    x = file.tensor("token_embd.weight")[torch.tensor(tokens)]
    x = x * math.sqrt(file.number("embedding_length")) if gemma else x
    for layer in range(file.number("block_count")):
        heads, keys, width = (
            file.number(name, layer)
            for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        )
        given = x
        if heads:
            x = x + _attention(file, x, f"blk.{layer}", heads, keys, size, interleaved)
        if not width:
            x = given
            continue
        y = file.norm(x, f"blk.{layer}.ffn_norm")
        gate = file.linear(y, f"blk.{layer}.ffn_gate")
        gate = functional.gelu(gate, approximate="tanh") if gemma else functional.silu(gate)
        x = x + file.linear(gate * file.linear(y, f"blk.{layer}.ffn_up"), f"blk.{layer}.ffn_down")
    x = file.norm(x, "output_norm")
    output = file.tensor("output.weight")
    found = functional.linear(x, file.tensor("token_embd.weight") if output is None else output)
    assert file.read >= file.tensors.keys(), file.tensors.keys() - file.read
    return found


def _attention(file: File, x: Tensor, block: str, heads: int, keys: int, size: int, interleaved: bool) -> Tensor:
    y = file.norm(x, f"{block}.attn_norm")
    q, k, v = (file.linear(y, f"{block}.attn_{part}").unflatten(-1, (-1, size)) for part in "qkv")
    if file.tensor(f"{block}.attn_q_norm.weight") is not None:
        q, k = file.norm(q, f"{block}.attn_q_norm"), file.norm(k, f"{block}.attn_k_norm")
    q, k = _rotated(file, q, interleaved), _rotated(file, k, interleaved)
    out = torch.zeros_like(q)
    for head in range(heads):
        key = head // (heads // keys)
        for at in range(len(x)):
            weights = torch.softmax(k[: at + 1, key] @ q[at, head] / math.sqrt(size), 0)
            out[at, head] = weights @ v[: at + 1, key]
    return file.linear(out.flatten(1), f"{block}.attn_output")


def _rotated(file: File, x: Tensor, interleaved: bool) -> Tensor:
    size = x.shape[-1]
    assert file.number("rope.dimension_count") == size
    frequencies = file.number("rope.freq_base") ** (-torch.arange(0, size, 2).double() / size)
    factors = file.tensor("rope_freqs.weight") if interleaved else None
    frequencies = frequencies / (1.0 if factors is None else factors) / file.number("rope.scaling.factor", default=1.0)
    angles = torch.arange(len(x)).double()[:, None] * frequencies
    cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    turned = first * cos - second * sin, first * sin + second * cos
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
