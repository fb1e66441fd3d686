"""Small mixtures of experts of every make: fused parameters or a list of modules, and routers of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairkern.types import IndexArray, UnitMap

WIDTH, INNER, EXPERTS, CHOSEN, CLASSES = 6, 5, 4, 2, 3


class Fused(nn.Module):
    """Experts in three-dimensional parameters, as transformers keeps them: [E, 2·I, H] and [E, H, I]."""

    def __init__(
        self, *, gated: bool = True, transposed: bool = False, bias: bool = False, experts: int = EXPERTS
    ) -> None:
        super().__init__()
        self.num_experts, self.intermediate_dim = experts, INNER
        self.gated, self.is_transposed = gated, transposed
        wide = INNER * (2 if gated else 1)
        shapes = [(wide, WIDTH), (WIDTH, INNER)]
        up, down = (torch.randn(experts, *(s[::-1] if transposed else s)) * 0.5 for s in shapes)
        self.up = "gate_up_proj" if gated else "up_proj"
        self.register_parameter(self.up, nn.Parameter(up))
        self.down_proj = nn.Parameter(down)
        if bias:
            self.register_parameter(f"{self.up}_bias", nn.Parameter(torch.randn(experts, wide) * 0.3))
            self.down_proj_bias = nn.Parameter(torch.randn(experts, WIDTH) * 0.3)
        self.act_fn = nn.SiLU()

    def one(self, expert: int, x: Tensor) -> Tensor:
        """Expert number `expert` on rows of tokens."""
        up, down = getattr(self, self.up)[expert], self.down_proj[expert]
        x = x @ (up if self.is_transposed else up.T)
        if hasattr(self, "down_proj_bias"):
            x = x + getattr(self, f"{self.up}_bias")[expert]
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self.act_fn(gate) * x
        else:
            x = self.act_fn(x)
        x = x @ (down if self.is_transposed else down.T)
        return x + self.down_proj_bias[expert] if hasattr(self, "down_proj_bias") else x

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            tokens, slots = torch.where(top_k_index == expert)
            if len(tokens):
                made = self.one(expert, hidden_states[tokens]) * top_k_weights[tokens, slots, None]
                out.index_add_(0, tokens, made)
        return out


class Softmax(nn.Module):
    """Probabilities over all experts, the largest k, renormalised."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = F.linear(x, self.weight).softmax(-1)
        weights, index = probabilities.topk(CHOSEN, dim=-1)
        weights /= weights.sum(-1, keepdim=True)
        return weights, index


class Sigmoid(nn.Module):
    """Scores of their own for every expert, chosen with a bias that the weights do not have (DeepSeek)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.register_buffer("e_score_correction_bias", torch.randn(EXPERTS).abs() + 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        index = torch.topk(scores + self.e_score_correction_bias, CHOSEN, dim=-1).indices
        weights = scores.gather(1, index)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 1.5, index


class Rowed(Sigmoid):
    """The bias that chooses is a parameter of two dimensions (Ernie 4.5)."""

    def __init__(self) -> None:
        super().__init__()
        bias = self.e_score_correction_bias
        del self.e_score_correction_bias
        self.e_score_correction_bias = nn.Parameter(bias.unsqueeze(0))


class OneByOne(Softmax):
    """The likeliest expert, then the likeliest of the others (PhiMoE)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x, self.weight)
        weights, index = [], []
        for _ in range(CHOSEN):
            best = logits.max(dim=-1, keepdim=True)[1]
            weights.append(logits.softmax(-1).gather(1, best))
            index.append(best)
            logits = logits.scatter(1, best, float("-inf"))
        return torch.cat(weights, dim=-1), torch.cat(index, dim=-1)


class Chosen(nn.Module):
    """A linear layer with a bias; the softmax runs over the chosen only (GPT-OSS, the first Mixtral)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.gate(x).topk(CHOSEN, dim=-1)
        return weights.softmax(-1), index


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Listed(nn.ModuleList):
    """Experts as modules of their own, called for the tokens routed to them and not at all without any."""

    def __init__(self, *, experts: int = EXPERTS) -> None:
        super().__init__(Expert() for _ in range(experts))

    def one(self, expert: int, x: Tensor) -> Tensor:
        return self[expert](x)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, slots = torch.where(top_k_index == number)
            if len(tokens):
                out[tokens] += expert(hidden_states[tokens]) * top_k_weights[tokens, slots, None]
        return out


class Mixture(nn.Module):
    """[samples, tokens, 4] → a block of experts (and a shared one) beside a residual stream → class scores."""

    def __init__(self, experts: Any = Fused, router: Any = Softmax, *, shared: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.router, self.experts = router(), experts()
        self.shared = Expert() if shared else None
        self.shared_gate = nn.Linear(WIDTH, 1) if shared else None
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        weights, index = self.router(tokens)
        made = self.experts(tokens, index, weights)
        if self.shared is not None:
            made = made + torch.sigmoid(self.shared_gate(tokens)) * self.shared(tokens)
        return self.head((x + made.view(x.shape)).tanh().mean(1))


def build(*args: Any, seed: int = 0, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Mixture:
    torch.manual_seed(seed)
    return Mixture(*args, **kwargs).to(dtype).eval()


def samples(n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    """[n, 5, 4] that differ between classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = torch.randn(n, 5, 4, generator=generator, dtype=torch.float64)
    return x + y[:, None, None] * 0.5, y


LAYOUTS = {
    "gated": Fused,
    "transposed, with bias": partial(Fused, transposed=True, bias=True),
    "not gated": partial(Fused, gated=False),
    "with bias": partial(Fused, bias=True),
}
ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "softmax of the chosen": Chosen,
    "a bias of two dimensions": Rowed,
    "one after the other": OneByOne,
}
MIXTURES = {
    f"{layout}, {router}": partial(build, LAYOUTS[layout], ROUTERS[router])
    for layout, router in [("gated", r) for r in ROUTERS] + [(x, "softmax of the chosen") for x in LAYOUTS]
} | {
    "a residual stream that can be cut": partial(build, norm=False, shared=True),
    "a shared expert": partial(build, shared=True),
}


def the(units: UnitMap, kind: str) -> int:
    (g,) = [i for i, group in enumerate(units.groups) if group.kind == kind]
    return g


def nothing(units: UnitMap) -> list[IndexArray]:
    return [np.zeros(0, dtype=np.int64) for _ in units.groups]
