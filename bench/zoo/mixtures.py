"""Mixtures of experts as modules of a list, routed in the ways that people write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.quality.nets.transformers import GatedMLP


class Mixture(nn.Module):
    """The k likeliest experts of a token answer it; `sizes` are the experts' inner ones."""

    def __init__(self, width: int = 8, sizes: tuple[int, ...] = (6, 6, 6, 6), k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = len(sizes), k
        self.router = nn.Linear(width, len(sizes), bias=False)
        self.experts = nn.ModuleList(GatedMLP(width, n) for n in sizes)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.router(x).softmax(-1).topk(self.top_k, -1)
        return weights / weights.sum(-1, keepdim=True), index


class OneHot(Mixture):
    """Tokens are looked up in a mask of experts (Mixtral in transformers 4)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.chosen(flat)
        out = torch.zeros_like(flat)
        mask = F.one_hot(index, num_classes=self.num_experts).permute(2, 1, 0)
        for e in range(self.num_experts):
            slot, token = torch.where(mask[e])
            current = flat[None, token].reshape(-1, flat.shape[-1])
            out.index_add_(0, token, self.experts[e](current) * weights[token, slot, None])
        return out.reshape(x.shape)


class Compared(Mixture):
    """Tokens are picked by comparing the choice with the expert's number; nothing holds how many there are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.num_experts

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.chosen(flat)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            here = index == e
            token = here.any(-1)
            if token.any():
                out[token] += expert(flat[token]) * (weights * here).sum(-1, keepdim=True)[token]
        return out.reshape(x.shape)


class Dense(Mixture):
    """Every expert answers every token; weights below the k largest are zero."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        top, _ = weights.topk(self.top_k, -1)
        weights = weights * (weights >= top[..., -1:])
        weights = weights / weights.sum(-1, keepdim=True)
        return torch.stack([expert(x) * weights[..., e : e + 1] for e, expert in enumerate(self.experts)]).sum(0)


class Gate(nn.Module):
    """A router with a matrix and a bias for the choice of its own (DeepSeek)."""

    def __init__(self, width: int, experts: int, k: int) -> None:
        super().__init__()
        self.n_routed_experts, self.top_k = experts, k
        self.weight = nn.Parameter(torch.randn(experts, width))
        self.register_buffer("bias", 0.1 * torch.randn(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        index = (scores + self.bias).topk(self.top_k, -1).indices
        weights = scores.gather(1, index)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), index


class Sorted(nn.Module):
    """Tokens are sorted by their expert, and weighted once all experts have answered (DeepSeek's own code)."""

    def __init__(self, width: int = 8, sizes: tuple[int, ...] = (6, 6, 6, 6), k: int = 2) -> None:
        super().__init__()
        self.experts_per_rank = len(sizes)
        self.experts = nn.ModuleList(GatedMLP(width, n) for n in sizes)
        self.gate = Gate(width, len(sizes), k)
        self.shared = GatedMLP(width, 2 * sizes[0])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self.gate(flat)
        counts = index.new_zeros((len(index), len(self.experts))).scatter_(1, index, 1).sum(0)
        order = index.view(-1).argsort()
        tokens = flat[order // index.shape[1]]
        answers, start = [], 0
        for e, count in enumerate(counts.tolist()):
            if count:
                answers.append(self.experts[e](tokens[start : start + count]))
                start += count
        placed = torch.empty_like(tokens)
        placed[order] = torch.cat(answers)
        out = (placed.view(*index.shape, -1) * weights.unsqueeze(-1)).sum(1)
        return (out + self.shared(flat)).reshape(x.shape)


class Likeliest(nn.Module):
    """One expert a token, in a dictionary that runs itself (Switch Transformers)."""

    def __init__(self, width: int = 8, sizes: tuple[int, ...] = (6, 6, 6, 6)) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, len(sizes), bias=False)
        self.experts = NamedExperts(width, sizes)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        probabilities = self.classifier(flat).softmax(-1)
        mask = F.one_hot(probabilities.argmax(-1), num_classes=self.experts.num_experts)
        return self.experts(flat, mask, probabilities.max(-1).values).reshape(x.shape)


class NamedExperts(nn.ModuleDict):
    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__({f"expert_{i}": GatedMLP(width, n) for i, n in enumerate(sizes)})
        self.num_experts = len(sizes)

    def forward(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in mask.sum(0).nonzero().flatten().tolist():
            (token,) = mask[:, e].nonzero(as_tuple=True)
            out.index_add_(0, token, self[f"expert_{e}"](x[token]) * weights[token, None])
        return out


MIXTURES = {m.__name__: m for m in (OneHot, Compared, Dense, Sorted, Likeliest)}


class Net(nn.Module):
    """Two layers of such a mixture on sequences, and a head."""

    def __init__(self, mixture: type[nn.Module], width: int = 8, layers: int = 2, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(mixture(width, **options) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x.mean(1))
