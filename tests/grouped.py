"""Routers that choose groups of experts first, in several ways, and the plain definition of what they choose."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.experts import WIDTH, Fused, Listed, Mixture, build

EXPERTS, GROUPS, CHOSEN_GROUPS, CHOSEN = 16, 4, 2, 3


class Limited(nn.Module):
    """The best groups of experts by their two best, then the best experts in these (DeepSeek-V3)."""

    best = 2

    def __init__(self) -> None:
        super().__init__()
        self.n_routed_experts, self.n_group, self.topk_group, self.top_k = EXPERTS, GROUPS, CHOSEN_GROUPS, CHOSEN
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.register_buffer("e_score_correction_bias", torch.randn(EXPERTS) * 0.3)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What weighs, and what chooses."""
        scores = F.linear(x, self.weight).sigmoid()
        return scores, scores + self.e_score_correction_bias

    def of_groups(self, choice: Tensor) -> Tensor:
        parts = choice.view(-1, self.n_group, self.n_routed_experts // self.n_group)
        return parts.topk(self.best, dim=-1)[0].sum(-1)

    def mask(self, choice: Tensor) -> Tensor:
        """[tokens, experts]: of a chosen group."""
        groups = self.of_groups(choice)
        index = torch.topk(groups, k=self.topk_group, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(groups)
        mask.scatter_(1, index, 1)
        per_group = self.n_routed_experts // self.n_group
        return mask.unsqueeze(-1).expand(-1, self.n_group, per_group).reshape(-1, self.n_routed_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, choice = self.scores(x)
        choice = choice.masked_fill(~self.mask(choice).bool(), float("-inf"))
        index = torch.topk(choice, k=self.top_k, dim=-1, sorted=False)[1]
        weights = scores.gather(1, index)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, index


class Greedy(Limited):
    """Probabilities, the largest of a group, and zero for the experts of the others (DeepSeek-V2)."""

    best = 1

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).softmax(-1)
        return scores, scores * self.e_score_correction_bias.exp()

    def of_groups(self, choice: Tensor) -> Tensor:
        return choice.view(choice.shape[0], self.n_group, -1).max(dim=-1).values

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, choice = self.scores(x)
        index = choice.masked_fill(~self.mask(choice).bool(), 0.0).topk(self.top_k, dim=-1)[1]
        weights = scores.gather(1, index)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, index


class Repeated(Limited):
    """The mask of groups is repeated for each expert."""

    def mask(self, choice: Tensor) -> Tensor:
        groups = self.of_groups(choice)
        index = groups.topk(self.topk_group, dim=-1).indices
        mask = torch.zeros_like(groups).scatter(1, index, 1.0)
        return mask.repeat_interleave(self.n_routed_experts // self.n_group, dim=1)


class Folded(Limited):
    """The scores are masked group by group, and laid out flat again."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, choice = self.scores(x)
        parts = choice.unflatten(-1, (self.n_group, -1))
        groups = parts.topk(self.best, dim=-1).values.sum(-1)
        mask = torch.zeros_like(groups).scatter(1, groups.topk(self.topk_group, dim=-1).indices, 1.0)
        choice = parts.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).flatten(1)
        index = choice.topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, index)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, index


ROUTERS: dict[str, type[Limited]] = {r.__name__: r for r in (Limited, Greedy, Repeated, Folded)}
HOLDERS = {"fused": partial(Fused, experts=EXPERTS), "listed": partial(Listed, experts=EXPERTS)}


def grouped(router: type[nn.Module] = Limited, held: str = "fused", seed: int = 0) -> Mixture:
    return build(HOLDERS[held], router, seed=seed)


def defined(model: Mixture, x: Tensor, gone: Collection[int] = ()) -> Tensor:
    """What a model computes without these experts, by the definition: token by token, in lists."""
    router, residual = model.router, model.embed(x)
    tokens = model.norm(residual).reshape(-1, residual.shape[-1])
    scores, choice = router.scores(tokens)  # weights are normalised: a softmax may run over all
    made = torch.zeros_like(tokens)
    size = EXPERTS // GROUPS
    for t, (weighs, chooses) in enumerate(zip(scores.tolist(), choice.tolist(), strict=True)):
        there = [e for e in range(EXPERTS) if e not in gone]
        of_group = [sorted((chooses[e] for e in there if e // size == g), reverse=True) for g in range(GROUPS)]
        best = sorted(range(GROUPS), key=lambda g: -sum(of_group[g][: router.best]))[:CHOSEN_GROUPS]
        index = sorted((e for e in there if e // size in best), key=lambda e: -chooses[e])[:CHOSEN]
        total = sum(weighs[e] for e in index)
        for e in index:
            made[t] += model.experts.one(e, tokens[t : t + 1])[0] * (weighs[e] / total * 2.5)
    return model.head((residual + made.view(residual.shape)).tanh().mean(1))
