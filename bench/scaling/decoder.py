"""What a decoder of a given shape is made of: parameters, multiply-adds of a token, and what its cut layers read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """Attention and a gated MLP in every layer; in `mixtures` of the layers the MLP is a mixture of experts and a
    shared one. Widths in units, norms and biases left out."""

    name: str
    layers: int
    hidden: int
    inner: int  # of a dense MLP
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    mixtures: int = 0  # layers with experts
    experts: int = 0
    active: int = 0  # experts that a token is sent to
    expert: int = 0  # inner width of one
    shared: int = 0  # inner width of the expert that all tokens go through

    @property
    def attention(self) -> int:
        return self.hidden * self.head * (2 * self.heads + 2 * self.key_heads)

    @property
    def embeddings(self) -> int:
        return 2 * self.vocabulary * self.hidden

    @property
    def block(self) -> int:
        """Parameters of the largest block."""
        return self.attention + 3 * self.hidden * max(self.inner, self.experts * self.expert + self.shared)

    @property
    def parameters(self) -> int:
        dense = (self.layers - self.mixtures) * self.inner
        sparse = self.mixtures * (self.experts * self.expert + self.shared)
        return self.layers * self.attention + 3 * self.hidden * (dense + sparse) + self.embeddings

    @property
    def multiply_adds(self) -> int:
        """Of a token, but for attention's own products, which sequences of a few hundred tokens hardly feel."""
        dense = (self.layers - self.mixtures) * self.inner
        sparse = self.mixtures * (self.active * self.expert + self.shared)
        return self.layers * self.attention + 3 * self.hidden * (dense + sparse) + self.embeddings // 2

    @property
    def orders(self) -> Counter[int]:
        """How many orders are solved, by width: neurons of every MLP and expert, and what the heads give."""
        found = Counter({self.heads * self.head: self.layers, self.inner: self.layers - self.mixtures})
        found[self.expert] += self.mixtures * self.experts
        found[self.shared] += self.mixtures
        return Counter({width: count for width, count in found.items() if width and count})

    @property
    def read(self) -> Counter[int]:
        """How many matrices of second moments a token enters, by width: taps, and what sequential compensation reads
        besides (queries, keys and values share one, as do gate and up)."""
        found = Counter({self.heads * self.head: self.layers, self.inner: self.layers - self.mixtures})
        found[self.expert] += self.mixtures * self.active
        found[self.shared] += self.mixtures
        found[self.hidden] += 2 * self.layers
        return Counter({width: count for width, count in found.items() if width and count})


NAMED = (  # sizes as their configurations have been published
    Decoder("1.1B (TinyLlama)", 22, 2048, 5632, 32, 4, 64, 32000),
    Decoder("8B (Llama 3)", 32, 4096, 14336, 32, 8, 128, 128256),
    Decoder("70B (Llama 3)", 80, 8192, 28672, 64, 8, 128, 128256),
    Decoder(
        "400B mixture (Llama 4 Maverick)", 48, 5120, 16384, 40, 8, 128, 202048,
        mixtures=24, experts=128, active=1, expert=8192, shared=8192,
    ),
)  # fmt: skip
