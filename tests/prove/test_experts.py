"""Routers are proven in float64, whatever they compute in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fairkern as fk
from tests.experts import CHOSEN, Softmax, build, samples, the


class Coarse(Softmax):
    """Probabilities in float32, whatever the model's type."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.float(), self.weight.type(torch.float32))
        weights, index = F.softmax(logits, dim=-1, dtype=torch.float32).topk(CHOSEN, dim=-1)
        return weights.to(x.dtype), index


@pytest.mark.parametrize("seed", range(4))
def test_a_router_that_computes_in_float32_is_proven_in_float64(seed: int) -> None:
    model, x = build(router=Coarse, seed=seed), samples()[0]
    units = fk.trace(model, x, seed=seed)
    assert units.groups[the(units, "expert")].frozen is None
